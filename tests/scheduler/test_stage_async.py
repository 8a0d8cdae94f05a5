"""It is async: results that come late cost nothing with async scheduling on, and do cost with it off."""

from __future__ import annotations

import itertools
import time

import pytest

from penstock.actors.in_process import PipelineDriver
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.cpu_device import CpuDevice
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import ints
from penstock.scheduler.scheduler import Scheduler
from penstock.scheduler.timeline import Span, Timeline

from .pipelines import fake_ranks, kept_with_late_results

STEP_S = 0.02
NUM_STEPS = 40


def run(num_stages: int, async_scheduling: bool, delay_s: float) -> tuple[float, list[list[Span]]]:
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
    devices = [CpuDevice(Timeline(keep_spans=True), f"fake{i}") for i in range(num_stages)]
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
