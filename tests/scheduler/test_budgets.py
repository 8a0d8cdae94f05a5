"""The scheduler's budgets with a slack of 3; the exact figures are `make bench`'s."""

from __future__ import annotations

import time

import numpy as np

from ..benchmarks.bench_scheduler import measure

SLACK = 3
REFERENCE_US = 3.5  # of `few_calls_us` where the scheduler takes 67 us a step: the machine of the budgets (LOG.md)


def few_calls_us() -> float:
    """What a few calls of the kind that the scheduler makes take here."""
    numbers, known, times = np.arange(64), dict[int, int](), []
    for _ in range(300):
        start_s = time.perf_counter()
        for i in range(10):
            few = (numbers + i > 32).nonzero()[0]
            known[i] = len(few)
            known[i] = known.get(i, 0) + int(numbers[few].sum())
        times.append(time.perf_counter() - start_s)
    return float(np.median(times)) * 1e5


def test_the_scheduler_stays_within_three_times_its_budgets() -> None:
    before_us = few_calls_us()
    figures = measure(num_steps=300, num_runs=4)
    slowness = max(1.0, max(before_us, few_calls_us()) / REFERENCE_US)
    for figure in figures:
        slack = 1 if figure.unit == "bytes" else SLACK * slowness
        assert figure.value <= slack * figure.budget, f"{figure.name}: {figure.value:.1f} {figure.unit}, {slowness:.1f}"
