"""How a step gets from the host into the layers; the device's way is chosen where a stage is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .batch import Batch
from .decoder import StageModule
from .work import StepWork


@dataclass(slots=True, frozen=True)
class StepLimits:
    """The largest step that a stage may meet."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    hidden_size: int
    dtype: torch.dtype  # of the hidden states

    @property
    def max_blocks_per_seq(self) -> int:
        """Columns of the widest block table."""
        return -(-self.max_model_len // self.block_size)


class Launcher(Protocol):
    """The two ends of a step's launch; both are called on the compute lane."""

    def upload(self, work: StepWork) -> None:
        """Puts the work's host tensors onto the device. Enqueued, never waits."""
        ...

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The stage's layers: hidden [T, H] in and out. The result is read before the next step's `forward`."""
        ...

    def greedy(self, hidden: Tensor, offsets: Tensor) -> Tensor | None:
        """On the last stage: the likeliest token [R] of the rows of hidden [T, H] at the offsets [R].

        None where the launcher has no way of its own for so many.
        """
        ...


class DirectLauncher:
    """On a CPU: the work's tensors are where they must be."""

    def __init__(self, module: StageModule) -> None:
        self._module = module

    def upload(self, work: StepWork) -> None:
        """Nothing to do."""

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        out: Tensor = self._module(hidden, batch)
        return out

    def greedy(self, hidden: Tensor, offsets: Tensor) -> Tensor | None:
        """No way of its own."""
        return None
