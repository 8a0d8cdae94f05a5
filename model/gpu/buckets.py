"""Shapes that small steps are padded to, and the buffers that hold a padded step's inputs.

A step of decodes is padded to a number of rows, a mixed one to a number of tokens. Padding is a pure function of the
plan, the same whether the step is replayed from a graph or launched kernel by kernel: so both give the same bits.
Padding rows of decodes read and write a block that no sequence has; the padding tokens of a mixed step are one more
prompt in that block. Steps above the largest shape keep their own.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...scheduler.mirror import StepInput
from ..batch import Batch
from ..launch import StepLimits
from .staging import Staging

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
        self._rows = decode_buckets(limits.max_num_seqs)
        self._tokens = mixed_buckets(limits.max_num_batched_tokens) if mixed else []
        self._most_rows = limits.max_num_seqs

    def shapes(self) -> list[StepShape]:
        """All of them, the largest of each kind first."""
        decodes = [StepShape(rows, rows, all_decode=True) for rows in reversed(self._rows)]
        return [*decodes, *(self._mixed(tokens) for tokens in reversed(self._tokens))]

    def shape_of(self, batch: Batch) -> StepShape | None:
        """What the step is padded to; None for one that keeps its own shape."""
        if batch.all_decode:
            rows = self.rows_for(batch.num_rows)
            return None if rows is None else StepShape(rows, rows, all_decode=True)
        size = _next(self._tokens, batch.num_tokens)
        return None if size is None else self._mixed(size)

    def rows_for(self, count: int) -> int | None:
        """What so many rows are padded to; None where they are too many."""
        return _next(self._rows, count)

    def _mixed(self, tokens: int) -> StepShape:
        return StepShape(tokens, min(tokens, self._most_rows) + 1, all_decode=False)


def _next(sizes: list[int], count: int) -> int | None:
    at = bisect_left(sizes, count)
    return None if at == len(sizes) else sizes[at]


class StepBuffers:
    """A padded step's inputs, always at the same place; written and read on the compute stream alone."""

    def __init__(self, limits: StepLimits, scratch_block: int, staging: Staging, device: torch.device) -> None:
        tokens = max(MAX_ROWS, MAX_TOKENS)
        rows = min(limits.max_num_seqs, tokens) + 1
        self._limits = limits
        self._scratch_block = scratch_block
        self._staging = staging
        self.hidden = torch.zeros(tokens, limits.hidden_size, dtype=limits.dtype, device=device)
        self._decode_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        shape = (rows, limits.max_blocks_per_seq)
        self.block_tables = torch.full(shape, scratch_block, dtype=torch.int32, device=device)

    def put(self, inputs: StepInput, shape: StepShape | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Puts the step, padded to its shape, first: positions, cache slots, lengths, starts of queries."""
        put, lengths = self._staging.put, inputs.seq_lens
        if shape is None:
            columns = ((inputs.positions, True), (inputs.cache_slots, True), (lengths, False))
            positions, slots, seq_lens = (put(values, wide) for values, wide in columns)
            return positions, slots, seq_lens, put(inputs.query_starts, False)
        tokens, rows = shape.num_tokens, shape.num_rows
        if not shape.all_decode and tokens > inputs.total_tokens:
            lengths = np.append(lengths, tokens - inputs.total_tokens)
        return (
            put(inputs.positions, True, tokens),
            put(inputs.cache_slots, True, tokens, self._scratch_block * self._limits.block_size),
            put(lengths, False, rows, int(shape.all_decode)),
            put(inputs.query_starts, False, rows + 1, tokens),
        )

    def put_table(self, inputs: StepInput, shape: StepShape | None) -> Tensor:
        """Puts the block table [S, W], with rows for the padding."""
        rows, width = inputs.block_table.shape
        rows = rows if shape is None else shape.num_rows
        return self._staging.put(inputs.block_table, False, rows * width, self._scratch_block).view(rows, width)

    def load(self, hidden: Tensor, batch: Batch) -> None:
        """Takes over what does not arrive in place: hidden [T, H] without padding, and the block table."""
        rows, width = batch.block_table.shape
        self.hidden[: len(hidden)].copy_(hidden)
        self.block_tables[:rows, :width].copy_(batch.block_table)

    def clear(self, shape: StepShape) -> None:
        """Inputs as if all of the step were padding."""
        batch = self.batch(shape)
        self.hidden.zero_()
        batch.positions.zero_()
        batch.cache_slots.fill_(self._scratch_block * self._limits.block_size)
        batch.seq_lens.fill_(int(shape.all_decode))
        if not shape.all_decode:
            batch.seq_lens[0] = shape.num_tokens
            batch.query_starts[0] = 0
            batch.query_starts[1:].fill_(shape.num_tokens)

    def batch(self, shape: StepShape) -> Batch:
        """The buffers as a step of this shape.

        The block table has its full width and the lengths count as the greatest, since the attention kernel cuts its
        work by them: the same cut, and so the same bits, whichever sequences share a step.
        """
        tokens, rows = shape.num_tokens, shape.num_rows
        lengths = [(tokens, True), (tokens, True), (rows, False), (rows + 1, False)]
        positions, cache_slots, seq_lens, starts = self._staging.fixed(lengths)
        if shape.all_decode:
            starts = self._decode_starts[: rows + 1]
        return Batch(
            num_tokens=tokens,
            num_rows=rows,
            max_query_len=1 if shape.all_decode else tokens,
            max_seq_len=self._limits.max_model_len,
            all_decode=shape.all_decode,
            token_ids=positions,
            positions=positions,
            cache_slots=cache_slots,
            query_starts=starts,
            seq_lens=seq_lens,
            block_table=self.block_tables[:rows],
            host_query_starts=np.arange(rows + 1, dtype=np.int32),
            host_seq_lens=np.ones(rows, np.int32),
        )
