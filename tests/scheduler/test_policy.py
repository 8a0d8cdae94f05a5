"""How much prefill a step may carry."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduler.cost import StepCost
from penstock.scheduler.policy import AdaptiveReserve, EvenCost, FillPolicy, Load, PrefillPolicy, TokenThrottling

THROTTLE = TokenThrottling(num_steps=8, min_tokens=32, max_tokens=2048)
LOAD = Load(waiting_tokens=4000, running_decodes=10, free_share=1.0, reserve=0.05, budget=8192)


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (LOAD, 500),  # waiting / T
        (replace(LOAD, waiting_tokens=100), 32),  # minP
        (replace(LOAD, waiting_tokens=20), 20),
        (replace(LOAD, waiting_tokens=100_000), 2048),  # maxP
        (replace(LOAD, waiting_tokens=100_000, free_share=0.525), 1024),
        (replace(LOAD, free_share=0.05), 0),
        (replace(LOAD, free_share=0.01), 0),  # never below 0
        (replace(LOAD, free_share=0.01, running_decodes=0), 32),  # nobody else makes progress
        (replace(LOAD, budget=7), 7),
        (replace(LOAD, waiting_tokens=0), 0),
    ],
)
def test_throttling_follows_its_formula(load: Load, expected: int) -> None:
    assert THROTTLE.prefill_tokens(load) == expected


def test_fill_takes_what_the_budget_leaves() -> None:
    assert FillPolicy().prefill_tokens(replace(LOAD, budget=100)) == 100
    assert FillPolicy().prefill_tokens(replace(LOAD, waiting_tokens=9)) == 9


COST = StepCost(per_token_s=1e-5, knee_tokens=100.0, per_context_s=1e-8, overhead_s=1e-4)
EVEN = EvenCost(THROTTLE, COST, num_cohorts=4, max_slowdown=100.0)
COHORT = replace(LOAD, running_decodes=400, num_decodes=100, context=40_000, running_context=160_000)


def cost_of(load: Load, policy: PrefillPolicy = EVEN) -> float:
    return COST.of(load.num_decodes, load.context, policy.prefill_tokens(load))


def test_a_mean_step_gets_what_the_throttle_says() -> None:
    assert EVEN.prefill_tokens(COHORT) == THROTTLE.prefill_tokens(COHORT) == 500


@pytest.mark.parametrize(
    "load",
    [
        replace(COHORT, num_decodes=60),
        replace(COHORT, num_decodes=0, context=0),  # no cohort's turn
        replace(COHORT, context=10_000),
        replace(COHORT, context=300_000),
        replace(COHORT, num_decodes=130),
    ],
)
def test_steps_cost_the_same_whatever_decodes_they_hold(load: Load) -> None:
    assert cost_of(load) == pytest.approx(cost_of(COHORT), abs=COST.per_token_s)
    is_dearer = COST.of(load.num_decodes, load.context) > COST.of(COHORT.num_decodes, COHORT.context)
    assert (EVEN.prefill_tokens(load) < 500) == is_dearer


def test_decodes_dearer_than_a_mean_step_get_no_prompt_beside_them() -> None:
    assert EVEN.prefill_tokens(replace(COHORT, context=10**6)) == 0


def test_tokens_that_cost_nothing_are_given_beyond_the_throttles() -> None:
    few = replace(COHORT, waiting_tokens=200, running_decodes=40, num_decodes=10, running_context=16_000, context=4_000)
    assert THROTTLE.prefill_tokens(few) == 32
    assert EVEN.prefill_tokens(few) == 90
    assert EVEN.prefill_tokens(replace(few, context=40_000)) == 90  # though its own decodes are dearer than the mean
    assert EVEN.prefill_tokens(replace(few, free_share=0.06)) == 21  # the cache's room for prompts
    assert EVEN.prefill_tokens(replace(few, free_share=0.05)) == 0


def test_a_step_slows_its_decodes_down_by_no_more_than_a_factor() -> None:
    policy = replace(EVEN, max_slowdown=2.0)
    assert cost_of(COHORT, policy) == pytest.approx(2 * COST.of(100, 40_000), abs=COST.per_token_s)
    assert replace(EVEN, max_slowdown=1.0).prefill_tokens(COHORT) == 32  # minP is given all the same
    assert policy.prefill_tokens(replace(COHORT, running_decodes=0, num_decodes=0)) == 500


def test_what_any_prompt_token_costs_makes_no_fewer_of_them() -> None:
    eager = replace(COST, prompt_s=0.1)
    for slowdown in (2.0, 100.0):
        policy = replace(EVEN, max_slowdown=slowdown)
        assert replace(policy, cost=eager).prefill_tokens(COHORT) == policy.prefill_tokens(COHORT)


loads = st.builds(
    Load,
    waiting_tokens=st.integers(0, 10**6),
    running_decodes=st.integers(0, 300),
    free_share=st.floats(0, 1),
    reserve=st.floats(0, 0.9),
    budget=st.integers(0, 10**5),
    num_decodes=st.integers(0, 300),
    context=st.integers(0, 10**6),
    running_context=st.integers(0, 10**7),
)


@given(
    sizes=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    contexts=st.lists(st.integers(0, 10**6), min_size=4, max_size=4),
    waiting=st.integers(1, 10**5),
    prompt_s=st.sampled_from([0.0, 1e-3]),
)
def test_of_cohorts_that_take_turns_one_gets_on_with_the_prompts(
    sizes: list[int], contexts: list[int], waiting: int, prompt_s: float
) -> None:
    policy = replace(EVEN, cost=replace(COST, prompt_s=prompt_s), max_slowdown=1.5)
    load = replace(LOAD, waiting_tokens=waiting, running_decodes=8 + sum(sizes), running_context=sum(contexts))
    turns = [
        replace(load, num_decodes=2 + size, context=context) for size, context in zip(sizes, contexts, strict=True)
    ]
    assert max(map(policy.prefill_tokens, turns)) >= min(THROTTLE.min_tokens, waiting)


@given(
    num_cohorts=st.integers(1, 8),
    size=st.integers(1, 200),
    waiting=st.integers(1, THROTTLE.max_tokens),
    knee_tokens=st.floats(1, 4000),
    prompt_s=st.sampled_from([0.0, 1e-4, 1e-2]),
    max_slowdown=st.floats(1, 10),
)
def test_prompts_go_on_while_cohorts_decode(
    num_cohorts: int, size: int, waiting: int, knee_tokens: float, prompt_s: float, max_slowdown: float
) -> None:
    policy = EvenCost(THROTTLE, replace(COST, knee_tokens=knee_tokens, prompt_s=prompt_s), num_cohorts, max_slowdown)
    contexts, given = [100 * size] * num_cohorts, 0
    for step in range(2 * num_cohorts):
        contexts[step % num_cohorts] += size  # each has one token more when its turn comes, and so more than the mean
        load = replace(
            LOAD,
            waiting_tokens=waiting,
            running_decodes=num_cohorts * size,
            running_context=sum(contexts),
            num_decodes=size,
            context=contexts[step % num_cohorts],
        )
        tokens = policy.prefill_tokens(load)
        assert tokens >= min(waiting, int(knee_tokens) - size), "these cost nothing"
        given += tokens
    assert given >= min(waiting, THROTTLE.min_tokens)


@given(load=loads, policy=st.sampled_from([FillPolicy(), THROTTLE, EVEN]))
def test_every_policy_stays_within_the_budget_and_never_stalls(load: Load, policy: PrefillPolicy) -> None:
    tokens = policy.prefill_tokens(load)
    assert 0 <= tokens <= min(load.budget, load.waiting_tokens)
    if load.waiting_tokens and load.budget and not load.running_decodes:
        assert tokens > 0


def test_the_reserve_grows_with_preemptions_and_returns() -> None:
    reserve = AdaptiveReserve(0.05)
    for _ in range(100):
        reserve.note_preemption()
    assert reserve.share == AdaptiveReserve.CEILING
    for _ in range(5000):
        reserve.note_step()
    assert reserve.share == pytest.approx(0.05, abs=1e-3)
