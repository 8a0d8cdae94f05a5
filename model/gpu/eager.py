"""Steps launched kernel by kernel, from host arrays that travel in one pinned buffer and one copy."""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import Batch
from ..decoder import StageModule
from ..launch import StepLimits
from ..sampler import largest_of
from ..work import StepWork
from .buckets import Buckets, StepBuffers, StepShape
from .staging import Staging

_COLUMNS = ("future_offsets", "future_slots", "sample_offsets", "sample_slots")
_MOST_RETURNS = 20  # token messages that one step may take in


class EagerLauncher:
    """`Launcher` without graphs."""

    def __init__(self, module: StageModule, device: torch.device, limits: StepLimits, scratch_block: int) -> None:
        """`scratch_block` is a block of the cache that no sequence has."""
        self._module = module
        self._device = device
        self._buckets = Buckets(limits, mixed=module.pads_chunks)
        self._staging = Staging(_num_words(limits), device)
        self._buffers = StepBuffers(limits, scratch_block, self._staging, device)
        self._largest = largest_of(device)
        self._sampled = torch.zeros_like(self._buffers.hidden)  # hidden states of rows that are sampled

    def upload(self, work: StepWork) -> None:
        """One copy for all that the step needs of the host, greedy sampling included."""
        inputs, batch, staging = work.inputs, work.batch, self._staging
        shape = self._buckets.shape_of(batch)
        staging.begin()
        batch.positions, batch.cache_slots, batch.seq_lens, batch.query_starts = self._buffers.put(inputs, shape)
        batch.block_table = self._buffers.put_table(inputs, shape)
        batch.token_ids = staging.put(inputs.token_ids, True)
        for name in _COLUMNS:
            column: Tensor | None = getattr(work, name)
            if column is not None:
                setattr(work, name, staging.put(column.numpy(), True))
        work.returned = [(staging.put(slots.numpy(), True), tokens) for slots, tokens in work.returned]
        staging.send()

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Launches the layers."""
        shape = self._buckets.shape_of(batch)
        if shape is None:
            out: Tensor = self._module(hidden, batch)
            return out
        self._buffers.load(hidden, batch)
        return self._launch(shape)[: len(hidden)]

    def greedy(self, hidden: Tensor, offsets: Tensor) -> Tensor | None:
        """See `Launcher`; the rows are padded as those of decodes are."""
        rows = self._buckets.rows_for(len(offsets))
        if rows is None:
            return None
        torch.index_select(hidden, 0, offsets, out=self._sampled[: len(offsets)])
        return self._launch_greedy(rows)[: len(offsets)].clone()

    def _launch(self, shape: StepShape) -> Tensor:
        """The layers over the buffers; the result [T of the shape, H]."""
        out: Tensor = self._module(self._buffers.hidden[: shape.num_tokens], self._buffers.batch(shape))
        return out

    def _launch_greedy(self, rows: int) -> Tensor:
        """The likeliest token of so many rows."""
        return self._largest(self._module.order(self._sampled[:rows]))


def _num_words(limits: StepLimits) -> int:
    """Room for the largest step: columns by token and by row, and the block table."""
    tokens, rows = limits.max_num_batched_tokens, limits.max_num_seqs + 2
    return 3 * (tokens + 2) + (_MOST_RETURNS + 8) * rows + (rows * limits.max_blocks_per_seq + 1) // 2 + 64
