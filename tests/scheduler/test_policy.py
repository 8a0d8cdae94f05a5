"""How much prefill a step may carry."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduler.policy import AdaptiveReserve, FillPolicy, Load, TokenThrottling

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


loads = st.builds(
    Load,
    waiting_tokens=st.integers(0, 10**6),
    running_decodes=st.integers(0, 300),
    free_share=st.floats(0, 1),
    reserve=st.floats(0, 0.9),
    budget=st.integers(0, 10**5),
)


@given(load=loads, policy=st.sampled_from([FillPolicy(), THROTTLE]))
def test_every_policy_stays_within_the_budget_and_never_stalls(load: Load, policy: FillPolicy) -> None:
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
