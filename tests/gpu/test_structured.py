"""Structured output through the whole pipeline on a GPU, the demo model in float32."""

from __future__ import annotations

import json
import re

import pytest

from ..actors.structured_run import Ran, asked, grammar, run
from ..actors.test_structured_in_process import PERSON, mixture


@pytest.fixture(scope="module")
def expected() -> Ran:
    return run(mixture(), device="cuda")


@pytest.mark.parametrize(
    ("stages", "num_blocks", "async_scheduling"), [(2, 2048, True), (4, 2048, True), (1, 24, True), (4, 24, False)]
)
def test_tokens_are_equal_at_any_number_of_stages_and_after_preemptions(
    expected: Ran, stages: int, num_blocks: int, async_scheduling: bool
) -> None:
    ran = run(mixture(), stages, num_blocks=num_blocks, async_scheduling=async_scheduling, device="cuda")
    assert ran.tokens == expected.tokens
    assert (ran.num_preemptions > 0) == (num_blocks < 100)


def test_rows_beside_grammars_are_as_they_are_alone(expected: Ran) -> None:
    alone = run([request for request in mixture() if not request.sampling.grammar], stages=2, device="cuda")
    assert alone.tokens == {name: tokens for name, tokens in expected.tokens.items() if name.startswith("p")}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_grammars_hold_the_text(temperature: float) -> None:
    spec, digits = grammar(json=PERSON), grammar(regex=r"[a-f]{3}-\d{2}")
    people = [asked(f"person{i}", 200, temperature=temperature, grammar=spec) for i in range(24)]
    codes = [asked(f"code{i}", 20, temperature=temperature, grammar=digits) for i in range(8)]
    ran = run([*people, *codes], stages=2, device="cuda")
    for request in people:
        person = json.loads(ran.text(request.request_id))
        assert set(person) == {"name", "age"}
        assert 0 <= person["age"] <= 99
        assert len(person["name"]) <= 12
    assert all(re.fullmatch(r"[a-f]{3}-\d{2}", ran.text(request.request_id)) for request in codes)
