"""Shapes that small steps are padded to.

A step of decodes is padded to a number of rows, a mixed one to a number of tokens. Padding is a pure function of the
plan, the same whether the step is replayed from a graph or launched kernel by kernel: so both give the same bits.
Steps above the largest shape keep their own.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from ...scheduler.mirror import StepInput
from ..limits import StepLimits

MAX_ROWS = 1024  # of a padded step of decodes
MAX_TOKENS = 512  # of a padded mixed step: a larger one keeps the device busy for longer than its launch takes
_DECODES = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, 512, 32), *range(512, MAX_ROWS + 1, 64)]
_MIXED = [16, *range(32, MAX_TOKENS + 1, 32)]


@dataclass(slots=True, frozen=True)
class PaddedShape:
    """What a padded step looks like to a kernel."""

    num_tokens: int
    num_rows: int
    all_decode: bool


def most_padded_tokens(limits: StepLimits) -> int:
    """Of a padded step of either kind."""
    return max(min(MAX_ROWS, limits.max_num_seqs), MAX_TOKENS)


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
        self.row_counts = decode_buckets(limits.max_num_seqs)
        self._decodes = [PaddedShape(rows, rows, all_decode=True) for rows in self.row_counts]
        self._tokens = mixed_buckets(limits.max_num_batched_tokens) if mixed else []
        self._mixed = [
            PaddedShape(tokens, min(tokens, limits.max_num_seqs) + 1, all_decode=False) for tokens in self._tokens
        ]

    def shapes(self) -> list[PaddedShape]:
        """All of them, the largest of each kind first."""
        return [*reversed(self._decodes), *reversed(self._mixed)]

    def shape_of(self, inputs: StepInput) -> PaddedShape | None:
        """What the step is padded to; None for one that keeps its own shape."""
        sizes, shapes = (self.row_counts, self._decodes) if inputs.all_decode else (self._tokens, self._mixed)
        at = bisect_left(sizes, inputs.total_tokens)
        return None if at == len(sizes) else shapes[at]

    def rows_for(self, count: int) -> int | None:
        """What so many rows are padded to; None where they are too many."""
        at = bisect_left(self.row_counts, count)
        return None if at == len(self.row_counts) else self.row_counts[at]
