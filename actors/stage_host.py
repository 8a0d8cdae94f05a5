"""A worker without Ray: sockets to the engine, links to the neighbours, and the threads that serve one rank's stage."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from typing import Protocol, cast

import torch

from ..errors import EngineDeadError
from ..model.gpu.measure import Measured
from ..model.grammar_compiler import GrammarCompiler
from ..model.partition import partition_for
from ..model.stage import check_device, stage_dtype
from ..model.weight_map import stage_weights
from ..scheduler.codec import decode_plan, encode_result
from ..scheduler.plan import StepPlan, StepResult
from ..scheduler.timeline import Timeline
from .cache_size import bytes_per_block
from .engine_spec import StageFigures, Surroundings, WorkerOffer, WorkerSpec
from .grammar_thread import GrammarThread
from .links import LinkRoom
from .ports import RankPosition, open_ports
from .sockets import Address, Peer, Receiver, Sender, Sockets
from .wire import Kind, decode_grammar, decode_text, encode_compiled, encode_step, encode_text, frame, unframe
from .worker_port import MAX_PLANS, MAX_UPLINK, WorkerName

log = logging.getLogger(__name__)

_PAUSE_HARD = 2  # omp_pause_hard

LINK_TIMEOUT_S = 300.0  # for the other ranks to come up
CONNECT_TIMEOUT_S = 60.0
_POLL_S = 0.5


class StageRunner(Protocol):
    """What serves the plans; see `scheduler.stage_scheduler.StageScheduler`."""

    last_retired_step: int
    timeline: Timeline

    def submit(self, plan: StepPlan) -> None:
        """Takes the next plan; never blocks."""
        ...

    def poll(self) -> bool:
        """Retires what is over; whether it should be called again at once."""
        ...

    def close(self) -> None:
        """Ends its threads."""
        ...


class StageHost:
    """One rank's process."""

    def __init__(self, spec: WorkerSpec, sockets: Sockets, engine: Peer) -> None:
        self._spec = spec
        self._sockets = sockets
        self._plans: Receiver = sockets.receiver(engine, MAX_PLANS)
        self._uplink: Sender | None = None
        self._runner: StageRunner | None = None
        self._grammars: GrammarThread | None = None  # of the last stage
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def offer(self) -> WorkerOffer:
        """Where this rank is."""
        name = WorkerName(self._spec.stage_idx, self._spec.tp_rank, os.getpid(), self._sockets.peer.node)
        return WorkerOffer(name, self._sockets.peer, self._plans.address)

    def connect(self, uplink: Address) -> None:
        """Opens the way to the engine and waits for the engine's own greeting; heartbeats begin."""
        self._uplink = self._sockets.sender(uplink, MAX_UPLINK)
        if not self._plans.wait_connected(CONNECT_TIMEOUT_S):
            raise EngineDeadError(f"the engine did not reach this rank at {self._plans.address.endpoint}")
        self._start("heartbeat", self._beat)

    def build(self, around: Surroundings) -> StageFigures:
        """Links, weights and cache: afterwards the rank serves plans. What it has and takes.

        Where `around` leaves the number of blocks open, the ranks agree on what the tightest of them holds.
        """
        begun_s = time.monotonic()
        engine, config = self._spec.engine, self._spec.engine.config
        torch.set_num_threads(config.num_threads or max(1, _num_cores() // around.num_ranks_here))
        position = RankPosition(
            self._spec.stage_idx, self._spec.tp_rank, config.pipeline_parallel_size, config.tensor_parallel_size
        )
        check_device(config, engine.model_config)
        room = LinkRoom(around.store, around.host, config.device, epoch=0, timeout_s=LINK_TIMEOUT_S)
        ports = open_ports(room, position)
        agreed, measured = [around.num_blocks], list[Measured]()

        def agree(num_blocks: int) -> int:
            agreed[0] = room.least("blocks", num_blocks, position.name, position.everybody)
            return agreed[0]

        optional: dict[str, object] = {} if around.num_blocks else {"agree_on_blocks": agree}
        if position.is_last_stage:
            optional["grammars"] = compiler = GrammarCompiler.of(config, engine.model_config)
            self._grammars = GrammarThread(compiler, self._send_compiled)
        module, _, function = engine.stage_builder.partition(":")
        self._runner = cast(
            StageRunner,
            getattr(import_module(module), function)(
                config,
                engine.model_config,
                stage_idx=self._spec.stage_idx,
                tp_rank=self._spec.tp_rank,
                num_blocks=around.num_blocks,
                ports=ports,
                on_result=self._send_result,
                on_failure=self._report,
                on_measured=measured.append,
                **optional,
            ),
        )
        _end_own_pool()
        gc.freeze()  # what lives as long as the stage: no collection between two steps goes through it
        self._start("plans", self._serve)
        return figures_of(self._spec, agreed[0], measured[0] if measured else None, time.monotonic() - begun_s)

    @property
    def timeline(self) -> Timeline:
        """Where the stage's time went."""
        assert self._runner is not None
        return self._runner.timeline

    def close(self) -> None:
        """Ends the threads and the sockets."""
        self._closing.set()
        for thread in self._threads:
            thread.join(timeout=2 * _POLL_S)
        if self._grammars is not None:
            self._grammars.close()
        if self._runner is not None:
            self._runner.close()
        self._sockets.close()

    def _start(self, name: str, work: object) -> None:
        thread = threading.Thread(target=work, name=name, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        assert self._runner is not None
        try:
            while not self._closing.is_set():
                if self._runner.poll() or self._plans.wait(_POLL_S):
                    self._submit_all()
        except BaseException as error:  # the thread's top: the engine must learn of it
            self._report(error)

    def _submit_all(self) -> None:
        assert self._runner is not None
        for data in self._plans.take(MAX_PLANS):
            kind, body = unframe(data)
            if kind is Kind.PLAN:
                self._runner.submit(decode_plan(cast(bytes, body)))
            elif kind is Kind.GRAMMAR and self._grammars is not None:
                self._grammars.submit(*decode_grammar(body))
            elif kind is Kind.FORGET and self._grammars is not None:
                self._grammars.forget(decode_text(body))
            else:
                raise ValueError(f"an unexpected {kind.name} message among the plans")

    def _beat(self) -> None:
        interval_s = self._spec.engine.config.heartbeat_interval_s
        while not self._closing.wait(interval_s):
            step = self._runner.last_retired_step if self._runner is not None else -1
            self._send(Kind.HEARTBEAT, encode_step(step))

    def _send_result(self, result: StepResult) -> None:
        if not self._send(Kind.RESULT, encode_result(result)):
            raise RuntimeError(f"the engine takes no results: the queue is full at step {result.step}")

    def _send_compiled(self, number: int, problem: str | None, num_bytes: int) -> None:
        if not self._send(Kind.COMPILED, encode_compiled(number, problem, num_bytes)):
            self._report(RuntimeError("the engine takes no answers to grammars: the queue is full"))

    def _report(self, error: BaseException) -> None:
        log.error("the stage has failed", exc_info=error)
        self._send(Kind.FAILURE, encode_text(f"{type(error).__name__}: {error}"))

    def _send(self, kind: Kind, body: bytes) -> bool:
        assert self._uplink is not None
        return self._uplink.send(frame(kind, body))


def figures_of(spec: WorkerSpec, num_blocks: int, measured: Measured | None, build_s: float) -> StageFigures:
    """A rank's figures: sizes from the configuration, speeds as measured."""
    config, model_config = spec.engine.config, spec.engine.model_config
    span = partition_for(config, model_config)[spec.stage_idx]
    dtype = stage_dtype(config, model_config)
    pieces = stage_weights(model_config, span, spec.tp_rank, config.tensor_parallel_size)
    return StageFigures(
        stage_idx=spec.stage_idx,
        tp_rank=spec.tp_rank,
        span=span,
        num_blocks=num_blocks,
        weight_bytes=sum(piece.num_values for piece in pieces) * dtype.itemsize,
        cache_bytes=num_blocks * bytes_per_block(config, model_config)[spec.stage_idx],
        build_s=build_s,
        step_cost=measured.step_cost if measured else None,
        bytes_per_s=measured.device.bytes_per_s if measured else None,
        flops_per_s=measured.device.flops_per_s if measured else None,
    )


def _end_own_pool() -> None:
    """Ends the OpenMP threads that this thread's building has left: with theirs beside those of the compute lane there
    are more than cores, and the runtime then lets a thread that waits sleep at once, which costs a step a fifth."""
    with suppress(OSError, AttributeError):  # another runtime has no such thing
        ctypes.CDLL("libgomp.so.1").omp_pause_resource_all(_PAUSE_HARD)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
