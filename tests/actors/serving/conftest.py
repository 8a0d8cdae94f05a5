"""A real server for the tests that need one, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .live_server import LiveServer, live_server


@pytest.fixture(scope="package")
def demo_server() -> Iterator[LiveServer]:
    """The demo model over two stages, in float32: its greedy tokens are the same in any company."""
    with live_server("--pipeline-parallel-size", "2", "--dtype", "float32", "--num-cpus", "4") as server:
        yield server
