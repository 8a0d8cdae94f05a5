"""SchedulerActor: the Ray actor that is an engine. It hires the workers and runs the loop; Ray calls only control it.

Placement group and workers are its children, so that they end with it, however it ends.
"""

from __future__ import annotations

import gc
import itertools
import logging
import os
import threading
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import ray

from ..configs.engine import EngineConfig
from ..errors import EngineDeadError
from ..scheduler.cost import StepCost
from ..scheduler.record import Recorder
from ..scheduler.scheduler import Scheduler
from ..scheduler.timeline import StageTotals
from .client_port import MAX_EVENT_FRAMES, MAX_REQUEST_FRAMES, ClientPort
from .cluster import this_place
from .crew import Crew
from .engine_health import LOOP_TIMEOUT_S, EngineHealth
from .engine_loop import EngineLoop, LoopSettings
from .engine_spec import (
    ClientAdmission,
    ClientOffer,
    EngineInfo,
    EngineSpec,
    StageFigures,
    StoreAddress,
    Surroundings,
    WorkerOffer,
)
from .logs import speak
from .run_files import RunFiles
from .scheduler_settings import scheduler_config
from .sockets import Sockets
from .stage_table import slowest_step_cost, stage_table
from .worker_port import WorkerPort

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

log = logging.getLogger(__name__)

_FIGURES_TIMEOUT_S = 2.0
_TRACE_TIMEOUT_S = 30.0
_FAILED_TRACE_TIMEOUT_S = 5.0
_LOOPBACK = "127.0.0.1"


class _SchedulerActor:
    """One engine. Ray calls may come on several threads."""

    def __init__(self, spec: EngineSpec) -> None:
        speak()
        place = this_place()
        self._spec = spec
        self._began_s = time.monotonic()
        self._sockets = Sockets(place.node, place.host, spec.config.transport)
        self._crew: Crew | None = None
        self._loop: EngineLoop | None = None
        self._info: EngineInfo | None = None
        self._store: Store | None = None
        self._files: RunFiles | None = None
        self._client_numbers = itertools.count()
        self._lock = threading.Lock()  # of shutdown against failure

    @ray.method
    def start(self) -> EngineInfo:
        """Hires and builds the workers, then serves. Raises what keeps the engine from starting, in its own words."""
        try:
            self._files = RunFiles(self._spec.config)
            self._crew = Crew(self._spec, self._sockets.peer)
            num_blocks = self._num_blocks()
            offers = self._crew.offers()
            ports = self._crew.connect(self._sockets, offers)
            stages = self._crew.build(self._surroundings(offers, num_blocks))
        except BaseException:
            if self._crew is not None:
                self._crew.close()
            self._sockets.close()
            raise
        num_blocks = self._agreed_blocks(stages)
        gc.freeze()  # a full collection of what was imported takes 50 ms and more, and no stage gets a plan (LOG.md)
        self._serve(ports, num_blocks, slowest_step_cost(stages))
        pids = {offer.name.pid: offer.name.node for offer in offers} | {os.getpid(): self._sockets.peer.node}
        self._info = EngineInfo(self._spec, num_blocks, self._sockets.peer, pids, tuple(stages))
        table = stage_table(stages, self._spec.model_config.num_hidden_layers)
        log.info("engine %r serves: %s\n%s", self._spec.name, _shape(self._spec.config, num_blocks), table)
        return self._info

    @ray.method
    def info(self) -> EngineInfo | None:
        """What clients must know; None while the engine starts."""
        return self._info

    @ray.method
    def attach(self, offer: ClientOffer) -> ClientAdmission:
        """Opens a pair of sockets with a client."""
        loop = self._running()
        client_id = f"client{next(self._client_numbers)}"
        requests = self._sockets.receiver(offer.peer, MAX_REQUEST_FRAMES)
        events = self._sockets.sender(offer.events, MAX_EVENT_FRAMES)
        loop.attach(ClientPort(client_id, requests, events, loop.scheduler))
        return ClientAdmission(client_id, requests.address)

    @ray.method
    def stats(self) -> dict[str, Any]:
        """The engine's figures of this moment, those of each stage under "stages"."""
        loop = self._running()
        figures = loop.figures()
        totals = self._crew.totals(_FIGURES_TIMEOUT_S) if self._crew and loop.failure is None else []
        stages = [
            _stage_figures(port, total)
            for port, total in itertools.zip_longest(loop.workers, totals)
            if port.name.tp_rank == 0
        ]
        return {
            "name": self._spec.name,
            "failure": loop.failure,
            "num_clients": loop.num_clients,
            "pid": os.getpid(),
            "uptime_s": time.monotonic() - self._began_s,
            "scheduler": asdict(figures.scheduler),
            "queue_time_s": asdict(figures.queue_time_s),
            "stages": stages,
            "workers": [asdict(port.name) for port in loop.workers],
        }

    @ray.method
    def health(self) -> EngineHealth:
        """Answers within `HEALTH_TIMEOUT_S` while the engine serves; raises EngineDeadError when it does not."""
        return self._running().health(LOOP_TIMEOUT_S)

    @ray.method
    def shutdown(self) -> None:
        """Answers what is open, ends the workers, gives the resources back; the caller then ends this process."""
        if self._loop is not None:
            self._loop.stop(f"engine {self._spec.name!r} was shut down")
        if self._files is not None and self._crew is not None:
            self._files.close()
            self._files.write_trace(partial(self._crew.spans, _TRACE_TIMEOUT_S))
        self._dismiss()

    def _running(self) -> EngineLoop:
        if self._loop is None:
            raise EngineDeadError(f"engine {self._spec.name!r} is still starting")
        return self._loop

    def _num_blocks(self) -> int:
        from .cache_size import num_kv_blocks  # loads torch, while the workers come up

        return num_kv_blocks(self._spec.config, self._spec.model_config)

    def _agreed_blocks(self, stages: list[StageFigures]) -> int:
        from .cache_size import agreed_kv_blocks

        return agreed_kv_blocks(self._spec.config, self._spec.model_config, [stage.num_blocks for stage in stages])

    def _surroundings(self, offers: list[WorkerOffer], num_blocks: int) -> list[Surroundings]:
        """The links' store and each worker's address; everything stays on the loopback device on one node."""
        from .links import open_store

        nodes = [offer.peer.node for offer in offers]
        is_one_node = set(nodes) == {self._sockets.peer.node}
        host = _LOOPBACK if is_one_node else self._sockets.peer.host
        self._store = store = open_store(host)
        return [
            Surroundings(
                store=StoreAddress(host, store.port),
                host=_LOOPBACK if is_one_node else offer.peer.host,
                num_ranks_here=nodes.count(offer.peer.node),
                num_blocks=num_blocks,
            )
            for offer in offers
        ]

    def _serve(self, ports: list[WorkerPort], num_blocks: int, step_cost: StepCost | None) -> None:
        config = self._spec.config
        settings = LoopSettings(
            config.heartbeat_interval_s,
            config.stage_timeout_s,
            config.step_timeout_s,
            result_delay_s=config.result_delay_ms / 1000,
        )
        scheduler = Scheduler(scheduler_config(config, self._spec.model_config, num_blocks, step_cost=step_cost))
        if self._files is not None and self._files.record is not None:
            scheduler = Recorder(scheduler, self._files.record)
        self._loop = EngineLoop(scheduler, ports, settings, self._on_failure)
        self._loop.start()

    def _on_failure(self, message: str) -> None:
        """Called on the loop's thread, which must go on answering."""
        threading.Thread(target=self._dismiss_failed, name="dismiss", daemon=True).start()

    def _dismiss_failed(self) -> None:
        """Writes timeline and record, which show what led to the failure, and ends the workers."""
        if self._files is not None and self._crew is not None:
            self._files.flush()
            self._files.write_trace(partial(self._crew.spans, _FAILED_TRACE_TIMEOUT_S))
        self._dismiss()

    def _dismiss(self) -> None:
        with self._lock:
            if self._crew is not None:
                self._crew.dismiss()


def _shape(config: EngineConfig, num_blocks: int) -> str:
    ranks = f"{config.pipeline_parallel_size} stages of {config.tensor_parallel_size} ranks"
    return f"{ranks} on {config.device}, {num_blocks} blocks of {config.block_size} tokens"


def _stage_figures(port: WorkerPort, totals: StageTotals | None) -> dict[str, Any]:
    figures: dict[str, Any] = {"pid": port.name.pid, "last_retired_step": port.last_retired_step, "busy_share": 0.0}
    if totals is not None:
        figures |= asdict(totals) | {"busy_share": totals.busy_share}
    return figures


SchedulerActor = ray.remote(_SchedulerActor)
