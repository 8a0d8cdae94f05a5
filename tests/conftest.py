"""What every test runs under, set before Ray or torch is imported."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # a token that an earlier run left on the machine decides nothing
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish() -> None:
    """What all tests import stays: no collection between two of them goes through it, for seconds."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """At the interpreter's end it may go."""
    gc.unfreeze()
