"""The largest step that a stage may meet: what buffers, tables and graphs are made for."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..scheduler.cost import MOST_MEASURED_CONTEXT
from ..scheduler.plan import most_granted_blocks


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

    @property
    def most_granted_blocks(self) -> int:
        """Of one plan, or of a step that is run to be measured."""
        seqs, of_seq, size = self.max_num_seqs, self.max_blocks_per_seq, self.block_size
        of_trial = min(seqs * of_seq, MOST_MEASURED_CONTEXT // size + seqs)
        return max(of_trial, most_granted_blocks(seqs, of_seq, self.max_num_batched_tokens, size))
