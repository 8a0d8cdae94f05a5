"""A loop says that it lives, or which part does not; and how long its requests waited to be planned."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from penstock.actors.engine_loop import LoopSettings
from penstock.errors import EngineDeadError

from .rig import Answers, LoopRig, eventually, loop_rig, request


@pytest.fixture
def rig() -> Iterator[LoopRig]:
    with loop_rig(settings=LoopSettings(heartbeat_interval_s=0.05, stage_timeout_s=0.6)) as made:
        yield made


def test_a_loop_that_goes_on_says_so(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    client.submit(request("a"))
    client.read(answers, 1)
    health = rig.loop.health(timeout_s=5.0)
    assert health.num_steps > 3
    assert health.num_unfinished == 0
    assert health.longest_silence_s < 0.6


def test_a_loop_that_hangs_is_told_apart_from_one_that_failed(rig: LoopRig) -> None:
    go_on = threading.Event()
    hanging = threading.Thread(target=lambda: rig.loop.call(go_on.wait))
    hanging.start()
    with pytest.raises(EngineDeadError, match=r"the engine's loop has not answered for 0\.1 s: hung"):
        rig.loop.health(timeout_s=0.1)
    go_on.set()
    hanging.join()
    rig.workers[0].silent = True
    eventually(lambda: rig.loop.failure is not None)
    with pytest.raises(EngineDeadError, match=r"stage 0 rank 0 \(pid 1000\) sent no heartbeat"):
        rig.loop.health(timeout_s=5.0)


def test_the_time_until_the_first_plan_is_counted_once_for_each_request_that_was_planned(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    rig.workers[-1].paused = True
    for i in range(65):  # one more than there are slots
        client.submit(request(f"r{i}", num_prompt=1, max_tokens=2))
    client.submit(request("refused", num_prompt=300))
    client.abort("r64")
    client.read(answers, 2)
    rig.workers[-1].paused = False
    client.read(answers, 66)
    figures = rig.loop.figures()
    assert sum(figures.queue_time_s.counts) == 64
    assert figures.scheduler.num_finished == {"stop": 0, "length": 64, "abort": 1, "error": 1}
