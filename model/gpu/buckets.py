"""Shapes that small steps are padded to, and the buffers that hold a padded step's inputs.

A step of decodes is padded to a number of rows, a mixed one to a number of tokens. Padding is a pure function of the
plan, the same whether the step is replayed from a graph or launched kernel by kernel: so both give the same bits.
Padding rows of decodes read and write a block that no sequence has; the padding tokens of a mixed step are one more
prompt in that block. Steps above the largest shape keep their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..launch import StepLimits

MAX_ROWS = 512  # of a padded step of decodes
MAX_TOKENS = 512  # of a padded mixed step: a larger one keeps the device busy for longer than its launch takes
_DECODES = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, MAX_ROWS + 1, 32)]
_MIXED = [16, *range(32, MAX_TOKENS + 1, 32)]


@dataclass(slots=True, frozen=True)
class StepShape:
    """What a padded step looks like to a kernel."""

    num_tokens: int
    num_rows: int
    all_decode: bool


def decode_buckets(max_rows: int) -> list[int]:
    """Numbers of rows: fine steps where a row is dear, coarser ones above."""
    top = min(max_rows, MAX_ROWS)
    return [*(size for size in _DECODES if size < top), top]


def mixed_buckets(max_tokens: int) -> list[int]:
    """Numbers of tokens of a mixed step."""
    return [size for size in _MIXED if size <= max_tokens]


class Buckets:
    """The shapes of one stage."""

    def __init__(self, limits: StepLimits, mixed: bool) -> None:
        """Without `mixed` only steps of decodes are padded."""
        self._rows = np.array(decode_buckets(limits.max_num_seqs))
        self._tokens = np.array(mixed_buckets(limits.max_num_batched_tokens) if mixed else [], np.int64)
        self._most_rows = limits.max_num_seqs

    def shapes(self) -> list[StepShape]:
        """All of them, the largest of each kind first."""
        decodes = [StepShape(rows, rows, all_decode=True) for rows in reversed(self._rows.tolist())]
        return [*decodes, *(self._mixed(tokens) for tokens in reversed(self._tokens.tolist()))]

    def shape_of(self, batch: Batch) -> StepShape | None:
        """What the step is padded to; None for one that keeps its own shape."""
        sizes = self._rows if batch.all_decode else self._tokens
        at = int(np.searchsorted(sizes, batch.num_tokens))
        if at == len(sizes):
            return None
        size = int(sizes[at])
        return StepShape(size, size, all_decode=True) if batch.all_decode else self._mixed(size)

    def _mixed(self, tokens: int) -> StepShape:
        return StepShape(tokens, min(tokens, self._most_rows) + 1, all_decode=False)


def pad(batch: Batch, shape: StepShape, scratch_block: int, block_size: int) -> None:
    """Lengthens the host tensors of a step to its shape; token ids and counts stay."""
    tokens, rows = shape.num_tokens - batch.num_tokens, shape.num_rows - batch.num_rows
    batch.positions = _longer(batch.positions, tokens, 0)
    batch.cache_slots = _longer(batch.cache_slots, tokens, scratch_block * block_size)
    batch.query_starts = _longer(batch.query_starts, rows, shape.num_tokens)
    batch.seq_lens = _longer(batch.seq_lens, rows, int(shape.all_decode))
    if not shape.all_decode and tokens:
        batch.seq_lens[batch.num_rows] = tokens
    table = batch.block_table.new_full((shape.num_rows, batch.block_table.shape[1]), scratch_block)
    table[: batch.num_rows] = batch.block_table
    batch.block_table = table


def _longer(values: Tensor, count: int, filler: int) -> Tensor:
    return torch.cat((values, values.new_full((count,), filler))) if count else values


class StepBuffers:
    """A padded step's inputs, always at the same place; written and read on the compute stream alone."""

    def __init__(self, limits: StepLimits, scratch_block: int, device: torch.device) -> None:
        tokens = max(MAX_ROWS, MAX_TOKENS)
        rows = min(limits.max_num_seqs, tokens) + 1
        self._limits = limits
        self.hidden = torch.zeros(tokens, limits.hidden_size, dtype=limits.dtype, device=device)
        self.positions = torch.zeros(tokens, dtype=torch.int64, device=device)
        slot = scratch_block * limits.block_size
        self.cache_slots = torch.full((tokens,), slot, dtype=torch.int64, device=device)
        self.seq_lens = torch.ones(rows, dtype=torch.int32, device=device)
        self.mixed_starts = torch.zeros(rows + 1, dtype=torch.int32, device=device)
        self.decode_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        shape = (rows, limits.max_blocks_per_seq)
        self.block_tables = torch.full(shape, scratch_block, dtype=torch.int32, device=device)

    def load(self, hidden: Tensor, batch: Batch) -> None:
        """Takes a padded step over: hidden [T, H] without padding, and the batch's tensors on the device."""
        tokens, (rows, width) = len(batch.positions), batch.block_table.shape
        self.hidden[: len(hidden)].copy_(hidden)
        self.positions[:tokens].copy_(batch.positions)
        self.cache_slots[:tokens].copy_(batch.cache_slots)
        self.seq_lens[:rows].copy_(batch.seq_lens)
        self.block_tables[:rows, :width].copy_(batch.block_table)
        if not batch.all_decode:
            self.mixed_starts[: rows + 1].copy_(batch.query_starts)

    def clear(self, shape: StepShape) -> None:
        """Inputs as if all of the step were padding."""
        self.hidden.zero_()
        self.seq_lens.fill_(int(shape.all_decode))
        self.seq_lens[0] = 1 if shape.all_decode else shape.num_tokens
        self.mixed_starts[1:].fill_(shape.num_tokens)

    def batch(self, shape: StepShape) -> Batch:
        """The buffers as a step of this shape.

        The block table has its full width and the lengths count as the greatest, since the attention kernel cuts its
        work by them: the same cut, and so the same bits, whichever sequences share a step.
        """
        tokens, rows = shape.num_tokens, shape.num_rows
        starts = self.decode_starts if shape.all_decode else self.mixed_starts
        return Batch(
            num_tokens=tokens,
            num_rows=rows,
            max_query_len=1 if shape.all_decode else tokens,
            max_seq_len=self._limits.max_model_len,
            all_decode=shape.all_decode,
            token_ids=self.positions[:tokens],
            positions=self.positions[:tokens],
            cache_slots=self.cache_slots[:tokens],
            query_starts=starts[: rows + 1],
            seq_lens=self.seq_lens[:rows],
            block_table=self.block_tables[:rows],
            host_query_starts=np.arange(rows + 1, dtype=np.int32),
            host_seq_lens=np.ones(rows, np.int32),
        )
