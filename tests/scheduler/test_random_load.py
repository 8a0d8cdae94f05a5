"""The scheduler holds under random load; see `random_load` for what is checked after every step."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from penstock.scheduler import assemble, plan

from .random_load import RandomLoad, totals


def run_examples(count: int, steps: int) -> None:
    totals.clear()
    checks = settings(
        max_examples=count,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(RandomLoad, settings=checks)
    print(dict(totals))


def test_scheduler_holds_under_random_load() -> None:
    run_examples(count=240, steps=12)
    for what in ("preemptions", "prefix hit tokens", "balanced", "stop", "length", "abort", "error"):
        assert totals[what] >= 10, f"the load has met only {totals[what]} x {what}"


@pytest.mark.parametrize("most", [1, 3])
def test_a_plan_grants_no_more_blocks_than_stages_have_room_for(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    for module in (plan, assemble):  # few registrations, so that the bound is below all blocks of all slots
        monkeypatch.setattr(module, "MAX_REGISTRATIONS", most)
    run_examples(count=60, steps=12)
    assert totals["prefix hit tokens"] >= 10


@pytest.mark.slow
def test_scheduler_holds_under_a_long_random_load() -> None:
    run_examples(count=1500, steps=20)
