"""A distribution in fixed buckets: constant memory, however much is observed."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

# Seconds: from what a step takes to what nobody waits for.
LATENCY_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)


@dataclass(slots=True)
class Histogram:
    """Counts since its start. For one thread."""

    bounds: tuple[float, ...] = LATENCY_BOUNDS_S  # a bucket's upper bound belongs to it
    counts: list[int] = field(init=False)  # by bucket; the last one is what exceeds every bound
    total: float = 0.0  # sum of all that was observed

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Counts the value in."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value
