"""Every test here needs an NVIDIA GPU; `python -m pytest tests/gpu -m gpu` runs them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from penstock.actors.cluster import ensure_ray

NUM_CPUS = 16


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster for all engines of the run: each would take some seconds to start one of its own."""
    ours = ensure_ray(None, NUM_CPUS)
    yield
    ours.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies beside this file, and skips it where there is no GPU."""
    for item in items:
        if "gpu" in item.path.parent.parts[-1:]:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"))
