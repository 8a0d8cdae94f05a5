"""Whatever a stage's steps were measured to cost: prompts that come at once are through while all others decode."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.cost import StepCost
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import StepResult, ints
from penstock.scheduler.scheduler import Scheduler

NUM_REQUESTS, PROMPT, MIN_TOKENS, NUM_STEPS = 256, 128, 128, 8
MEASURED = StepCost(1.03e-5, 290.0, 3.06e-8, 0.0, 4.87e-4)  # of 19 layers of 8B on an H100; prompts starved

costs = st.builds(
    StepCost,
    per_token_s=st.floats(0, 1e-4),
    knee_tokens=st.floats(1, 2000),
    per_context_s=st.floats(0, 1e-7),
    overhead_s=st.floats(0, 1e-2),
    prompt_s=st.floats(0, 1e-2),
)


def steps_to_admit_all(cost: StepCost, num_stages: int, slowdown: float) -> int:
    """Plans until no prompt waits, each retired as late as the pipeline lets it; nobody's answer ends before."""
    config = SchedulerConfig(
        num_stages=num_stages,
        num_blocks=20_000,
        block_size=16,
        max_num_seqs=NUM_REQUESTS,
        max_num_batched_tokens=2048,
        max_model_len=2048,
        enable_prefix_caching=False,
        max_unretired_plans=num_stages + 1,
        policy="token_throttling",
        throttle_steps=NUM_STEPS,
        min_prefill_tokens=MIN_TOKENS,
        step_cost=cost,
        max_decode_slowdown=slowdown,
    )
    scheduler, mirror = Scheduler(config), Mirror(NUM_REQUESTS, 128, 16, config.max_unretired_plans)
    results: deque[StepResult] = deque()
    for index in range(NUM_REQUESTS):
        scheduler.add_request(NewRequest(str(index), ints([7] * PROMPT), 1900, ignore_eos=True))
    while (stats := scheduler.stats()).waiting or stats.prefilling:
        while (plan := scheduler.schedule()) is not None:
            results.append(StepResult(plan.step, ints([5] * len(mirror.apply(plan).sample_rows))))
        scheduler.update(results.popleft())
        scheduler.take_events()
        if stats.num_steps > 1000:
            break
    return stats.num_steps


@settings(deadline=None, max_examples=15)
@given(cost=costs, num_stages=st.integers(1, 6), slowdown=st.floats(1, 10))
@example(cost=MEASURED, num_stages=2, slowdown=3.0)
@example(cost=MEASURED, num_stages=4, slowdown=3.0)
def test_no_prompt_waits_until_decodes_end(cost: StepCost, num_stages: int, slowdown: float) -> None:
    rounds = NUM_REQUESTS * PROMPT / MIN_TOKENS + 2  # in each, one step has the throttle's least
    assert steps_to_admit_all(cost, num_stages, slowdown) <= num_stages * rounds


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_burst_is_admitted_as_fast_as_the_throttle_says(num_stages: int) -> None:
    assert steps_to_admit_all(MEASURED, num_stages, slowdown=100.0) <= 6 * NUM_STEPS
