"""The soak, in a minute: growth shows less clearly than in half an hour, but nothing may be lost or miscounted."""

from __future__ import annotations

import pytest

from penstock.tests.benchmarks.soak import soak


@pytest.mark.slow
def test_a_minute_of_mixed_load_loses_nothing() -> None:
    figures = soak(minutes=1.0, rate=8.0, max_growth=1.15, seed=1, num_kv_blocks=40)
    assert figures["problems"] == []
    assert figures["left"]
    assert figures["preemptions"]  # half an hour's cache would often do for a minute without one
