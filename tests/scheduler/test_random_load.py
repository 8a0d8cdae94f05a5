"""The scheduler holds under random load; see `random_load` for what is checked after every step."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

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
    run_examples(count=60, steps=40)
    assert totals["preemptions"] > 20
    assert totals["prefix hit tokens"] > 100
    assert min(totals[reason] for reason in ("stop", "length", "abort", "error")) > 20


@pytest.mark.slow
def test_scheduler_holds_under_a_long_random_load() -> None:
    run_examples(count=1500, steps=60)
