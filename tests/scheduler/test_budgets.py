"""The scheduler's budgets with a slack of 3; the exact figures are `make bench`'s."""

from __future__ import annotations

from ..benchmarks.bench_scheduler import measure

SLACK = 3


def test_the_scheduler_stays_within_three_times_its_budgets() -> None:
    figures = measure(num_steps=300, num_runs=2)
    for figure in figures:
        slack = 1 if figure.unit == "bytes" else SLACK
        assert figure.value <= slack * figure.budget, f"{figure.name}: {figure.value:.1f} {figure.unit}"
