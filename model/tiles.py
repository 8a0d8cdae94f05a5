"""How many rows of logits are worked on at a time where each needs several temporaries of its own size."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_ELEMENTS_ON_CPU = 1 << 18  # a megabyte: stays in a core's cache
_ELEMENTS = 1 << 24  # elsewhere memory is what is bounded: 64 MB


def tiles(vocab_size: int, *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The columns [N, ...] of a step's rows, cut alike into tiles."""
    elements = _ELEMENTS_ON_CPU if columns[0].device.type == "cpu" else _ELEMENTS
    num_rows = max(1, elements // vocab_size)
    return zip(*(torch.split(column, num_rows) for column in columns), strict=True)
