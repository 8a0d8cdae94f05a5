"""The loop in one process: a real Scheduler, real sockets, fake workers and clients."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from penstock.actors.engine_loop import LoopSettings
from penstock.actors.wire import Kind, encode_request, frame
from penstock.errors import EngineDeadError
from penstock.scheduler.plan import Sampling

from .rig import Answers, LoopRig, eventually, fake_output, loop_rig, request

FAST = LoopSettings(heartbeat_interval_s=0.05, stage_timeout_s=0.6)


@pytest.fixture
def rig() -> Iterator[LoopRig]:
    with loop_rig(settings=FAST) as made:
        yield made


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_requests_are_served_and_every_worker_sees_every_plan(num_stages: int) -> None:
    with loop_rig(num_stages) as rig:
        client, answers = rig.client(), Answers()
        for i in range(20):
            client.submit(request(f"r{i}", num_prompt=3 + i, max_tokens=6))
        client.read(answers, 20)
        for i in range(20):
            assert answers.tokens[f"r{i}"] == fake_output(3 + i, 6)
        eventually(lambda: len({worker.num_plans for worker in rig.workers}) == 1)
        rig.loop.call(rig.loop.scheduler.check)


def test_a_request_that_cannot_be_served_is_answered_and_others_go_on(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    client.submit(request("long", num_prompt=300))
    client.submit(request("fine"))
    client.read(answers, 2)
    assert "300" in (answers.ends["long"].error or "")
    assert "256" in (answers.ends["long"].error or "")
    assert answers.tokens["fine"] == fake_output(5, 4)


@pytest.mark.parametrize("token_id", [1000, (1 << 64) - 1])
def test_a_stop_id_that_the_model_does_not_have_is_answered_and_others_go_on(rig: LoopRig, token_id: int) -> None:
    client, answers = rig.client(), Answers()
    sampling = Sampling(min_tokens=1, stop_token_ids=(token_id,))
    client.submit(replace(request("bad"), sampling=sampling, stop_token_ids=(token_id,)))
    client.submit(request("fine"))
    client.read(answers, 2)
    assert answers.ends["bad"].error == f"stop_token_ids holds token id {token_id}, ids are 0 to 999"
    assert answers.tokens["fine"] == fake_output(5, 4)


def test_an_abort_ends_a_request(rig: LoopRig) -> None:
    rig.workers[-1].paused = True
    client, answers = rig.client(), Answers()
    client.submit(request("a", max_tokens=200))
    client.abort("a")
    client.read(answers, 1)
    assert answers.ends["a"].finish_reason == "abort"


def test_a_stopped_client_does_not_slow_another_and_later_gets_everything(rig: LoopRig) -> None:
    stopped, other = rig.client(max_frames=2), rig.client()
    for i in range(8):
        stopped.submit(request(f"s{i}", max_tokens=40))
    stopped.submit(request("refused", num_prompt=300))
    for round_number in range(6):
        answers = Answers()
        other.submit(request(f"o{round_number}", max_tokens=40))
        other.read(answers, 1)
    late = Answers()
    stopped.read(late, 9)
    assert all(late.tokens[f"s{i}"] == fake_output(5, 40) for i in range(8))
    assert "300" in (late.ends["refused"].error or "")


def test_a_client_that_sends_rubbish_is_detached_alone(rig: LoopRig) -> None:
    assert_detached_alone(rig, b"rubbish")


@pytest.mark.parametrize(
    "wrong",
    [
        {"logit_bias": ((math.inf, 0.0),)},
        {"logit_bias": ((3, math.nan),)},
        {"stop_token_ids": ([],)},
        {"temperature": "warm"},
        {"seed": 1.5},
        {"num_logprobs": 1 << 40},
        {"grammar": 7},
    ],
    ids=str,
)
def test_a_client_that_sends_what_no_stage_can_take_is_detached_alone(rig: LoopRig, wrong: dict[str, Any]) -> None:
    assert_detached_alone(
        rig, encode_request(replace(request("a"), sampling=replace(Sampling(temperature=1.0), **wrong)))
    )


def test_stop_ids_that_are_no_numbers_detach_their_client_alone(rig: LoopRig) -> None:
    assert_detached_alone(rig, encode_request(replace(request("a"), stop_token_ids=([],))))  # type: ignore[arg-type]


def assert_detached_alone(rig: LoopRig, body: bytes) -> None:
    """Asserts that a request of these bytes costs its sender alone the engine."""
    bad, good = rig.client(), rig.client()
    bad.requests.send(frame(Kind.REQUEST, body))
    answers = Answers()
    good.submit(request("a"))
    good.read(answers, 1)
    eventually(lambda: rig.loop.num_clients == 1)
    assert rig.loop.failure is None


def test_a_client_that_says_goodbye_has_its_requests_aborted(rig: LoopRig) -> None:
    rig.workers[-1].paused = True
    client = rig.client()
    client.submit(request("a", max_tokens=200))
    client.requests.send(frame(Kind.BYE))
    eventually(lambda: rig.loop.num_clients == 0)
    assert rig.loop.call(lambda: rig.loop.scheduler.num_unfinished) == 0


def test_a_silent_worker_fails_every_request_and_names_itself(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    rig.workers[1].paused = rig.workers[1].silent = True
    client.submit(request("a"))
    client.read(answers, 1)
    assert "stage 1 rank 0 (pid 1001) sent no heartbeat for 0." in (answers.ends["a"].error or "")
    eventually(lambda: rig.failures == [rig.loop.failure])


def test_a_worker_that_takes_no_plan_is_not_only_said_to_be_slow(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    rig.loop.call(rig.loop.workers[0].plans.close)
    client.submit(request("a"))
    client.read(answers, 1)
    assert "takes no plan at step 0: it has died, or its queue is full" in (answers.ends["a"].error or "")


def test_a_workers_failure_is_the_answer_now_and_later(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    rig.workers[-1].paused = True
    client.submit(request("a"))
    rig.workers[0].fail("ValueError: a broken tensor")
    client.read(answers, 1)
    client.submit(request("b"))
    client.read(answers, 2)
    for name in "ab":
        assert answers.ends[name].error == "stage 0 rank 0 (pid 1000) failed: ValueError: a broken tensor"


def test_an_engine_that_fails_leaves_it_to_that_news_to_end_what_is_open(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    rig.workers[-1].paused = True
    for name in "ab":
        client.submit(request(name))
    client.submit(request("refused", num_prompt=300))
    client.read(answers, 1)
    rig.workers[0].fail("ValueError: a broken tensor")
    client.read(answers, 3)
    assert client.failed == rig.loop.failure
    assert client.open_when_failed == {"a", "b"}, "an error without that news is the request's own"
    assert rig.loop.call(lambda: rig.loop.scheduler.num_unfinished) == 0


def test_a_scheduler_that_raises_fails_the_engine_with_its_words(rig: LoopRig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise AssertionError("block 7 twice")

    rig.workers[-1].paused = True
    client, answers = rig.client(), Answers()
    client.submit(request("a"))
    eventually(lambda: rig.loop.call(lambda: rig.loop.scheduler.num_unfinished) == 1)
    monkeypatch.setattr(rig.loop.scheduler, "schedule", broken)
    client.read(answers, 1)
    assert client.open_when_failed == {"a"}
    assert answers.ends["a"].error == "AssertionError: block 7 twice"
    client.submit(request("late"))
    client.read(answers, 2)
    assert answers.ends["late"].error == "AssertionError: block 7 twice"


def test_stopping_answers_what_is_open_and_ends_the_thread(rig: LoopRig) -> None:
    rig.workers[-1].paused = True
    client, answers = rig.client(), Answers()
    client.submit(request("a", max_tokens=200))
    eventually(lambda: rig.loop.call(lambda: rig.loop.scheduler.num_unfinished) == 1)
    rig.loop.stop("engine 'e' was shut down")
    client.read_some(answers)
    assert answers.ends["a"].error == "engine 'e' was shut down"
    assert not rig.failures
    with pytest.raises(EngineDeadError, match="was shut down"):
        rig.loop.call(lambda: None)


def test_a_delayed_result_delays_the_step_and_not_the_loop() -> None:
    with loop_rig(1, LoopSettings(result_delay_s=0.05)) as rig:
        client, answers = rig.client(), Answers()
        start = time.monotonic()
        client.submit(request("a", max_tokens=4))
        client.submit(request("long", num_prompt=300))
        client.read(answers, 1)
        assert set(answers.ends) == {"long"}, "the refusal waited for a result"
        client.read(answers, 2)
        assert time.monotonic() - start >= 2 * 0.05
        assert answers.tokens["a"] == fake_output(5, 4)


def test_an_idle_loop_sleeps() -> None:
    with loop_rig(2) as rig:
        client, answers = rig.client(), Answers()
        client.submit(request("a"))
        client.read(answers, 1)
        turns = 0
        tick = rig.loop._clock.tick

        def counted() -> float:
            nonlocal turns
            turns += 1
            return tick()

        rig.loop._clock.tick = counted  # type: ignore[method-assign]
        for worker in rig.workers:
            worker.silent = True
        time.sleep(0.6)
        assert turns < 20
