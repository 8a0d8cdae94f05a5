"""StageWorker: the Ray actor around one rank of one stage. Ray calls start and end it; plans and results bypass Ray."""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING

import ray

from ..scheduler.timeline import Span, StageTotals, now_ns
from .cluster import this_place
from .engine_spec import StageFigures, Surroundings, WorkerOffer, WorkerSpec
from .logs import speak
from .sockets import Address, Peer, Sockets

if TYPE_CHECKING:
    from .stage_host import StageHost


log = logging.getLogger(__name__)


class _StageWorker:
    """Light to import, so that the scheduler's process needs no torch to place it; the host behind it loads torch."""

    def __init__(self) -> None:
        self._host: StageHost | None = None  # since `open`: what a constructor raises would be told as an actor's death

    @ray.method
    def open(self, spec: WorkerSpec, engine: Peer) -> WorkerOffer:
        """Becomes this rank; where it is."""
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # read as torch loads: longer spinning starves peers
        from .stage_host import StageHost

        speak()
        place = this_place()
        sockets = Sockets(place.node, place.host, spec.engine.config.transport)
        self._host = StageHost(spec, sockets, engine)
        offer = self._host.offer()
        log.info("%s of engine %r is on %s", offer.name, spec.engine.name, place.host)
        return offer

    @ray.method
    def connect(self, uplink: Address) -> None:
        """Joins the engine's sockets."""
        self._running().connect(uplink)

    @ray.method
    def build(self, around: Surroundings) -> StageFigures:
        """Makes links and stage; back, with what the stage has and takes, when the worker serves plans."""
        return self._running().build(around)

    @ray.method
    def totals(self) -> StageTotals:
        """Where the stage's time went so far."""
        return self._running().timeline.so_far()

    @ray.method
    def spans(self) -> list[Span]:
        """The stage's timeline, if it keeps one, by the wall clock: each node's monotonic one began at another time."""
        offset_ns = time.time_ns() - now_ns()
        return [span.moved(offset_ns) for span in self._running().timeline.spans]

    @ray.method
    def close(self) -> None:
        """Ends threads and sockets; the process is then killed."""
        if self._host is not None:
            self._host.close()

    def _running(self) -> StageHost:
        assert self._host is not None, "the worker was not opened"
        return self._host


StageWorker = ray.remote(_StageWorker)
