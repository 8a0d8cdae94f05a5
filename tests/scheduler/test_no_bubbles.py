"""In a pipeline of equal stages, no stage idles or waits for a token, while requests come and go.

Time is counted in ticks: a stage works one tick on a step, a token is back P ticks after its step began, and the
scheduler hears of it one tick later.
"""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from penstock.scheduler.config import SchedulerConfig

from .fake_pipeline import Pipeline

NUM_TICKS = 250


def count_ticks(pipeline: Pipeline, num_stages: int) -> Counter[str]:
    """What the first stage does in each tick: work, wait for a token, or idle without a plan."""
    rng, ticks = random.Random(num_stages), Counter[str]()
    plans: deque[tuple[list[int], list[int]]] = deque()  # rows' slots, slots that sample
    token_back: dict[int, int] = {}  # slot: tick
    result_due: deque[int] = deque()
    for tick in range(NUM_TICKS):
        if rng.random() < 0.4:
            pipeline.submit([rng.randrange(1000) for _ in range(rng.randint(5, 60))], rng.randint(10, 80))
        while result_due and result_due[0] <= tick:
            result_due.popleft()
            pipeline.retire()
        while (plan := pipeline.schedule()) is not None:
            plans.append((plan.slots.tolist(), pipeline.stages.sampled_slots))
        if not plans:
            ticks["idle"] += 1
        elif any(token_back.get(slot, 0) > tick for slot in plans[0][0]):
            ticks["wait"] += 1
        else:
            ticks["work"] += 1
            token_back.update(dict.fromkeys(plans.popleft()[1], tick + num_stages))
            result_due.append(tick + num_stages + 1)
    return ticks


@pytest.mark.parametrize("num_stages", [1, 2, 4, 8])
def test_a_loaded_pipeline_has_no_bubble(num_stages: int) -> None:
    config = SchedulerConfig(
        num_stages=num_stages,
        num_blocks=4000,
        block_size=4,
        max_num_batched_tokens=512,
        max_model_len=400,
        vocab_size=1000,
        max_unretired_plans=2 if num_stages == 1 else num_stages + 2,
        policy="token_throttling",
    )
    pipeline = Pipeline(config)
    for index in range(24):
        pipeline.submit([index + 1] * 20, 40)
    ticks = count_ticks(pipeline, num_stages)
    assert ticks == {"work": NUM_TICKS}
    pipeline.run()
