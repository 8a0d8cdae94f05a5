"""It is async: results that come late cost nothing with async scheduling on, and do cost with it off."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

import pytest

from penstock.actors.in_process import PipelineDriver
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.cpu_device import CpuDevice
from penstock.scheduler.device import Event
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import StepPlan, ints
from penstock.scheduler.scheduler import Scheduler
from penstock.scheduler.stage_scheduler import StageScheduler
from penstock.scheduler.timeline import Span, Timeline

from .pipelines import FakeStage, fake_ranks, kept_with_late_results

STEP_S = 0.02
NUM_STEPS = 40


class PolledDevice(CpuDevice):
    """One whose events the launching thread asks for."""

    is_polled = True


def run(
    num_stages: int, async_scheduling: bool, delay_s: float, kind: type[CpuDevice] = CpuDevice
) -> tuple[float, list[list[Span]]]:
    """Decodes one sequence for each stage over fake stages; returns steps per second and each stage's spans."""
    config = SchedulerConfig(
        num_stages=num_stages,
        max_unretired_plans=2 if num_stages == 1 else num_stages + 1,
        async_scheduling=async_scheduling,
        num_blocks=256,
        max_num_seqs=16,
        max_model_len=512,
        policy="fill" if num_stages == 1 else "token_throttling",
    )
    driver = PipelineDriver(Scheduler(config), delay_s)
    devices = [kind(Timeline(keep_spans=True), f"fake{i}") for i in range(num_stages)]
    driver.ranks = fake_ranks(devices, lambda: Mirror(16, 32, 16), STEP_S, driver.on_result, driver.on_failure)
    for i in range(num_stages):
        driver.scheduler.add_request(NewRequest(f"r{i}", ints([1, 2, 3]), max_tokens=NUM_STEPS // num_stages + 1))
    start = time.monotonic()
    for _ in driver.run():
        pass
    rate = driver.num_steps / (time.monotonic() - start)
    driver.close()
    return rate, [device.timeline.spans for device in devices]


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_late_results_cost_nothing_with_async_scheduling_and_do_without(num_stages: int) -> None:
    kept = kept_with_late_results(lambda async_on, delay_s: run(num_stages, async_on, delay_s)[0])
    assert kept.shows_asynchrony, kept


def test_a_polled_device_does_as_the_other() -> None:
    _, stages = run(2, True, 0.0, PolledDevice)
    steps = [sorted(span.step for span in stage if span.name == "compute") for stage in stages]
    assert steps[0] == steps[1] == list(range(len(steps[0])))


def test_a_polled_devices_steps_are_retired_by_who_polls() -> None:
    told: list[tuple[int, str]] = []
    device = PolledDevice(Timeline(), "polled")
    stage = FakeStage(device, None, None, None, None, STEP_S)
    rank = StageScheduler(
        stage,
        Mirror(16, 32, 16),
        device,
        lambda result: told.append((result.step, threading.current_thread().name)),
        lambda error: pytest.fail(str(error)),
        device.timeline,
    )
    for step in range(2):
        rank.submit(StepPlan(step, ints(), ints()))
    assert rank.poll(), "the first step takes a while"
    assert not told
    while rank.poll():
        pass
    assert told == [(step, threading.current_thread().name) for step in range(2)]
    assert rank.last_retired_step == 1
    rank.close()


def test_a_polled_steps_failure_is_told_once_and_ends_the_polling() -> None:
    class Failing(FakeStage):
        def compute(self, work: StepInput, after: Sequence[Event]) -> Event:
            return self.device.enqueue("compute", lambda: 1 // 0, after, cause="compute", step=work.step)  # type: ignore[arg-type]

    failures: list[BaseException] = []
    device = PolledDevice(Timeline(), "failing")
    stage = Failing(device, None, None, None, None)
    rank = StageScheduler(stage, Mirror(16, 32, 16), device, lambda _: None, failures.append, device.timeline)
    assert not rank.poll()
    for step in range(2):
        rank.submit(StepPlan(step, ints(), ints()))
    deadline = time.monotonic() + 10
    while rank.poll():
        assert time.monotonic() < deadline
    assert [type(failure) for failure in failures] == [ZeroDivisionError]
    assert rank.last_retired_step == -1
    rank.close()


def test_the_next_receive_is_posted_before_the_send_completes_and_no_wait_begins_while_a_step_could_launch() -> None:
    _, stages = run(4, True, 0.0)
    for stage in stages[1:-1]:
        posted = {s.step: s.start_ns for s in stage if s.lane == "receive" and not s.is_wait}
        sent = {s.step: s.end_ns for s in stage if s.lane == "send" and not s.is_wait}
        early = [posted[t + 1] < sent[t] for t in sent if t + 1 in posted]
        assert sum(early) >= 0.9 * len(early)
    for stage in stages:
        assert all(wait.name != "wait: compute" for wait in stage if wait.lane == "compute" and wait.is_wait)
        check_waits(stage)


def check_waits(stage: list[Span]) -> None:
    """Between two computes there is nothing but waits with a name, and each ends when its cause does."""
    compute = sorted((s for s in stage if s.lane == "compute"), key=lambda s: s.start_ns)
    receives = {s.step: s.end_ns for s in stage if s.lane in ("receive", "token_receive") and not s.is_wait}
    for before, after in itertools.pairwise(compute):
        gap_ms = (after.start_ns - before.end_ns) / 1e6
        assert gap_ms < 5, f"{gap_ms:.1f} ms between {before.name} and {after.name} of step {after.step} have no name"
        if before.name == "wait: activations" and before.step in receives:
            assert before.start_ns <= receives[before.step], "waited for activations that were there"
