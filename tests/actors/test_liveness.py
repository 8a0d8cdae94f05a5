"""Silence is judged by a clock that stands still while the judge itself is stopped."""

from __future__ import annotations

from typing import cast

from penstock.actors.liveness import ObserverClock, Progress, Watch
from penstock.actors.sockets import Receiver, Sender
from penstock.actors.worker_port import WorkerName, WorkerPort


def workers(*last_heard: float) -> list[WorkerPort]:
    nothing = cast("Sender", None), cast("Receiver", None)
    return [WorkerPort(WorkerName(k, 0, 40 + k), *nothing, last_heard=t) for k, t in enumerate(last_heard)]


def test_a_silent_worker_is_named_with_its_pid_and_the_time() -> None:
    watch = Watch(workers(9.9, 6.9), 0.25, 3.0)
    assert watch.verdict(9.9) is None
    assert watch.verdict(10.0) == "stage 1 rank 0 (pid 41) sent no heartbeat for 3.1 s: dead or hung"


def test_a_workers_own_report_ends_the_engine_when_nobody_else_is_silent() -> None:
    port = workers(10.0)
    watch = Watch(port, 0.25, 3.0)
    watch.report(port[0], "ValueError: bad", 10.0)
    port[0].last_heard = 10.7
    assert watch.verdict(10.7) is None
    assert watch.verdict(10.8) == "stage 0 rank 0 (pid 40) failed: ValueError: bad"


def test_a_neighbours_report_names_the_worker_that_died() -> None:
    ports = workers(10.8, 10.0)
    watch = Watch(ports, 0.25, 3.0)
    watch.report(ports[0], "connection closed", 10.0)
    verdict = watch.verdict(10.8)
    assert verdict is not None
    assert verdict.startswith("stage 1 rank 0 (pid 41) sent no heartbeat for 0.8 s: dead or hung; stage 0")


def test_a_stage_that_beats_but_does_not_end_its_step_is_named() -> None:
    ports = workers(0.0, 0.0, 0.0)
    progress = Progress(ports, 5.0)
    assert progress.verdict(0.0, -1) is None
    assert progress.verdict(100.0, -1) is None, "an idle engine is no hung one"
    for port, step in zip(ports, (8, 7, 7), strict=True):
        port.last_retired_step = step
    assert progress.verdict(101.0, 10) is None
    assert progress.verdict(106.0, 10) is None
    assert progress.verdict(106.1, 10) == "stage 1 rank 0 (pid 41) has not ended step 8 for 5.1 s: hung"
    ports[1].last_retired_step = ports[2].last_retired_step = 8
    assert progress.verdict(106.2, 10) is None
    for port in ports:
        port.last_retired_step = 10
    assert progress.verdict(106.3, 10) is None
    assert progress.verdict(300.0, 10) is None


def test_time_that_the_observer_slept_through_does_not_count() -> None:
    readings = iter([100.0, 100.2, 160.2, 160.3])
    clock = ObserverClock(lambda: next(readings))
    assert [round(clock.tick(), 3) for _ in range(3)] == [0.2, 0.7, 0.8]
