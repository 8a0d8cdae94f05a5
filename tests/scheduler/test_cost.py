"""What a step costs: fitted to measured steps, and turned round into how much fits into a time."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduler.cost import (
    StepCost,
    StepSample,
    StepShape,
    fit,
    least_squares_above_zero,
    shapes_to_measure,
)

COST = StepCost(per_token_s=9e-6, knee_tokens=100.0, per_context_s=1e-8, overhead_s=1e-4, prompt_s=2e-4)
SHAPES = shapes_to_measure(max_num_seqs=512, max_num_batched_tokens=2048, max_model_len=4096)


def measured(cost: StepCost, noise: float = 0.0) -> list[StepSample]:
    rng = np.random.default_rng(0)
    return [StepSample(shape, cost.of_shape(shape) * float(1 + noise * rng.standard_normal())) for shape in SHAPES]


def test_up_to_the_knee_tokens_are_free_and_above_it_they_are_not() -> None:
    assert COST.of(10, 0, 90) == COST.of(1, 0, 1)
    assert COST.of(10, 0, 190) - COST.of(10, 0, 90) == pytest.approx(100 * COST.per_token_s)
    assert COST.of(10, 1000) - COST.of(10, 0) == pytest.approx(1000 * COST.per_context_s)
    assert COST.of(10, 0, 1) - COST.of(10, 0) == pytest.approx(COST.prompt_s)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_fit_foretells_steps_that_were_not_measured(noise: float) -> None:
    found = fit(measured(COST, noise))
    for shape in (
        StepShape(16, 16 * 300),
        StepShape(128, 128 * 700),
        StepShape(64, 64 * 400, 300),
        StepShape(0, 0, 900),
    ):
        assert found.of_shape(shape) == pytest.approx(COST.of_shape(shape), rel=0.05)


def test_no_term_is_negative_however_odd_the_times() -> None:
    odd = [StepSample(shape, 1e-3 / (1 + index)) for index, shape in enumerate(SHAPES)]
    assert min(astuple(fit(odd))) >= 0
    assert fit([StepSample(StepShape(1, 1), 0.5)]).of(1, 1) == pytest.approx(0.5)


def test_least_squares_leave_out_what_would_be_negative() -> None:
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    weights, error = least_squares_above_zero(columns, np.array([3.0, 2.0, 1.0]))
    assert weights.tolist() == pytest.approx([2.0, 0.0])
    assert error == pytest.approx(2.0)


costs = st.builds(
    StepCost,
    per_token_s=st.floats(1e-7, 1e-4),
    knee_tokens=st.floats(1, 500),
    per_context_s=st.floats(0, 1e-7),
    overhead_s=st.floats(0, 1e-3),
    prompt_s=st.floats(0, 1e-3),
)


@given(cost=costs, decodes=st.integers(0, 300), context=st.integers(0, 10**6), limit_s=st.floats(0, 0.1))
def test_the_most_that_fits_fits_and_one_more_does_not(
    cost: StepCost, decodes: int, context: int, limit_s: float
) -> None:
    tokens = cost.prompt_tokens_within(limit_s, decodes, context)
    assert tokens >= 0
    if tokens:
        assert cost.of(decodes, context, tokens) <= limit_s * (1 + 1e-6)
    assert cost.of(decodes, context, tokens + 1) > limit_s * (1 - 1e-6)


@given(cost=costs, decodes=st.integers(0, 300), context=st.integers(0, 10**6), tokens=st.integers(1, 4000))
def test_a_steps_own_cost_leaves_room_for_all_of_it(cost: StepCost, decodes: int, context: int, tokens: int) -> None:
    assert cost.prompt_tokens_within(cost.of(decodes, context, tokens), decodes, context) >= tokens


def test_the_steps_to_measure_keep_to_the_limits() -> None:
    for shape in shapes_to_measure(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=100):
        assert shape.num_decodes <= 4
        assert shape.num_decodes + shape.num_prompt_tokens <= 16
        assert shape.context <= 4 * 100
