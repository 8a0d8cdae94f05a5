"""An engine's workers: hired into one placement group, introduced to the engine, and let go together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.placement_group import remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ..errors import EngineDeadError
from ..scheduler.timeline import Span, StageTotals
from .engine_spec import START_TIMEOUT_S, EngineSpec, StageFigures, Surroundings, WorkerOffer, WorkerSpec
from .placement import reserve, worker_resources
from .ray_errors import first_line, own_error
from .sockets import Peer, Sockets
from .stage_worker import StageWorker
from .worker_port import MAX_PLANS, MAX_UPLINK, WorkerPort

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

CONNECT_TIMEOUT_S = 120.0  # for processes to come up


class Crew:
    """The workers of one engine, by stage, then rank."""

    def __init__(self, spec: EngineSpec, engine: Peer) -> None:
        """Hires them, all at once. Raises ClusterError where the cluster has no room."""
        config = spec.config
        group = reserve(spec.name, config, config.device)
        self._group: PlacementGroup | None = group
        ranks = [(k, r) for k in range(config.pipeline_parallel_size) for r in range(config.tensor_parallel_size)]
        self._labels = [f"stage {stage_idx} rank {tp_rank}" for stage_idx, tp_rank in ranks]
        self._workers = [_hire(group, stage_idx, config.device) for stage_idx, _ in ranks]
        specs = [WorkerSpec(spec, stage_idx, tp_rank) for stage_idx, tp_rank in ranks]
        self._opened = [worker.open.remote(rank, engine) for worker, rank in zip(self._workers, specs, strict=True)]

    def offers(self) -> list[WorkerOffer]:
        """Where each worker is, once all are up."""
        return self._all(self._opened, CONNECT_TIMEOUT_S)

    def connect(self, sockets: Sockets, offers: Sequence[WorkerOffer]) -> list[WorkerPort]:
        """A pair of sockets with each worker, both ways greeted."""
        ports, answers = [], []
        for worker, offer in zip(self._workers, offers, strict=True):
            port = WorkerPort(
                offer.name, sockets.sender(offer.plans, MAX_PLANS), sockets.receiver(offer.peer, MAX_UPLINK)
            )
            ports.append(port)
            answers.append(worker.connect.remote(port.uplink.address))
        self._all(answers, CONNECT_TIMEOUT_S)
        for port in ports:
            if not port.uplink.wait_connected(CONNECT_TIMEOUT_S):
                raise EngineDeadError(f"{port.name} could not reach the engine at {port.uplink.address.endpoint}")
        return ports

    def build(self, surroundings: Sequence[Surroundings]) -> list[StageFigures]:
        """Links, weights and caches, on all workers at once; what each has and takes."""
        built = [worker.build.remote(around) for worker, around in zip(self._workers, surroundings, strict=True)]
        return self._all(built, START_TIMEOUT_S)

    def totals(self, timeout_s: float) -> list[StageTotals | None]:
        """Where each worker's time went; None for one that doesn't answer in time."""
        return self._each([worker.totals.remote() for worker in self._workers], timeout_s)

    def spans(self, timeout_s: float) -> dict[str, list[Span]]:
        """The timelines that come in time, by worker."""
        answers = self._each([worker.spans.remote() for worker in self._workers], timeout_s)
        return {label: spans for label, spans in zip(self._labels, answers, strict=True) if spans}

    def close(self) -> None:
        """Lets the workers end their threads and sockets, for a moment, and dismisses them."""
        if self._group is not None:
            ray.wait([worker.close.remote() for worker in self._workers], num_returns=len(self._workers), timeout=2.0)
        self.dismiss()

    def dismiss(self) -> None:
        """Kills all workers and gives their resources back; a second call does nothing."""
        group, self._group = self._group, None
        if group is None:
            return
        for worker in self._workers:
            ray.kill(worker, no_restart=True)
        remove_placement_group(group)

    def _all(self, refs: list[Any], timeout_s: float) -> list[Any]:
        """Every answer; the first failure of any worker is raised at once, as its own text."""
        labels = dict(zip(refs, self._labels, strict=True))
        deadline, pending = time.monotonic() + timeout_s, refs
        answers: dict[Any, Any] = {}
        while pending:
            done, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not done:
                late = ", ".join(labels[ref] for ref in pending)
                raise EngineDeadError(f"{late} did not start within {timeout_s:.0f} s")
            answers |= {ref: _answer(labels[ref], ref) for ref in done}
        return [answers[ref] for ref in refs]

    def _each(self, refs: list[Any], timeout_s: float) -> list[Any]:
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=timeout_s)
        return [_try_get(ref) if ref in done else None for ref in refs]


def _hire(group: PlacementGroup, stage_idx: int, device: str) -> Any:
    resources = worker_resources(device)
    options = StageWorker.options(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=stage_idx),
        max_concurrency=2,  # figures can be asked for while a call runs
    )
    return options.remote()


def _answer(label: str, ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        raise own_error(error, label) from None
    except RayActorError as error:
        raise EngineDeadError(f"{label} died while it started: {first_line(error)}") from None


def _try_get(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=0)
    except (RayTaskError, RayActorError, GetTimeoutError):
        return None
