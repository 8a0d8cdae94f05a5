"""Cohorts: as many as stages, equal within one, and no step that waits while another need not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.plan import StepPlan

from .fake_pipeline import Pipeline

CONFIG = SchedulerConfig(
    num_stages=4,
    num_blocks=512,
    block_size=4,
    max_num_seqs=32,
    max_model_len=200,
    vocab_size=1000,
    max_unretired_plans=6,
    policy="token_throttling",
)


def steady(config: SchedulerConfig, num_seqs: int, max_tokens: int = 150) -> Pipeline:
    """A pipeline in which so many sequences decode; as many results in flight as stages."""
    pipeline = Pipeline(config)
    for index in range(num_seqs):
        pipeline.submit([index + 1] * 5, max_tokens)
    while sum(pipeline.scheduler.stats().cohort_sizes) < num_seqs:
        pipeline.step()
    turn(pipeline, 2 * config.num_stages)
    return pipeline


def turn(pipeline: Pipeline, count: int) -> list[StepPlan]:
    """So many plans, each followed by the result that a full pipeline gives back meanwhile."""
    plans: list[StepPlan] = []
    while len(plans) < count:
        plan = pipeline.schedule()
        if plan is not None:
            plans.append(plan)
        if plan is None or len(pipeline.results) >= pipeline.config.num_stages:
            pipeline.retire()
    return plans


@pytest.mark.parametrize("num_stages", range(1, 9))
def test_sizes_are_within_one_and_every_sequence_runs_once_a_round(num_stages: int) -> None:
    config = replace(CONFIG, num_stages=num_stages, max_unretired_plans=2 if num_stages == 1 else num_stages + 2)
    pipeline = steady(config, 21)
    sizes = pipeline.scheduler.stats().cohort_sizes
    assert len(sizes) == num_stages
    assert max(sizes) - min(sizes) <= 1
    slots = [slot for plan in turn(pipeline, num_stages) for slot in plan.slots.tolist()]
    assert sorted(slots) == sorted(set(slots))
    assert len(slots) == 21


def test_a_cohort_that_lost_members_is_filled_within_a_round_from_the_others() -> None:
    pipeline = steady(CONFIG, 20)
    life = pipeline.scheduler._life
    for request in [r for r in life.table.held() if life.table.cohort[r.slot] == 2]:
        pipeline.abort(request.request_id)
    assert sorted(pipeline.scheduler.stats().cohort_sizes) == [0, 5, 5, 5]
    plans = turn(pipeline, 8)
    assert sorted(pipeline.scheduler.stats().cohort_sizes) == [3, 4, 4, 4]
    assert all(len(plan.slots) in (3, 4) for plan in plans[4:])
    assert len({plan.cohort for plan in plans[4:]}) == 4


def test_fewer_sequences_than_stages_are_a_cohort_each() -> None:
    pipeline = steady(CONFIG, 3)
    assert sorted(pipeline.scheduler.stats().cohort_sizes) == [0, 1, 1, 1]
    assert all(len(plan.slots) == 1 for plan in turn(pipeline, 6))


def test_a_steady_decode_never_waits_for_tokens() -> None:
    pipeline = steady(CONFIG, 16)
    last: dict[int, int] = {}
    for plan in turn(pipeline, 40):
        for slot in plan.slots.tolist():
            assert plan.step - last.get(slot, -99) >= CONFIG.num_stages
            last[slot] = plan.step


def test_prefill_goes_before_a_decode_that_would_wait() -> None:
    pipeline = steady(CONFIG, 1)
    pipeline.retire()  # the sequence may run, but its token is not back before two more steps
    pipeline.submit([7] * 60, 4)
    plan = pipeline.schedule()
    assert plan is not None
    assert plan.cohort == -1
    assert plan.registrations


def test_a_finished_prefill_joins_the_smallest_cohort() -> None:
    pipeline = steady(CONFIG, 7)
    before = pipeline.scheduler.stats().cohort_sizes
    pipeline.submit([9] * 3, 50)
    turn(pipeline, 1)
    after = pipeline.scheduler.stats().cohort_sizes
    assert after[before.index(min(before))] == min(before) + 1


def test_a_budget_below_the_cohort_serves_everyone_in_turn() -> None:
    config = replace(CONFIG, num_stages=1, max_unretired_plans=2, max_num_batched_tokens=4)
    pipeline = Pipeline(config)
    for index in range(4):
        pipeline.submit([index + 1], 100)
    turn(pipeline, 8)
    pipeline.scheduler._assembler._config = replace(config, max_num_batched_tokens=3)
    served = [slot for plan in turn(pipeline, 8) for slot in plan.slots.tolist()]
    assert [served.count(slot) for slot in range(4)] == [6, 6, 6, 6]


def test_async_off_withholds_a_sequence_until_its_step_has_retired() -> None:
    pipeline = Pipeline(replace(CONFIG, async_scheduling=False))
    pipeline.submit([1, 2, 3], 8)
    assert pipeline.schedule() is not None
    assert pipeline.schedule() is None
    pipeline.retire()
    assert pipeline.schedule() is not None
    assert pipeline.schedule() is None


def test_async_on_keeps_two_unresolved_tokens_and_no_third() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([1, 2, 3], 8)
    assert [pipeline.schedule() is not None for _ in range(3)] == [True, True, False]
    pipeline.retire()
    assert pipeline.schedule() is not None
