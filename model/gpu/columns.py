"""A step's host arrays on their way to the device: columns that always lie at the same place, in one pinned buffer.

The place on the device is written and read on the compute stream alone, so a step's copy waits for the step before, and
graphs read where the copy goes. There are two layouts over the same memory: a padded step's columns are short, so
that little is copied; a larger step's have room for the largest. Columns by row lie at the same place in both.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..limits import StepLimits

Column = TypeVar("Column", NDArray[Any], Tensor)

# What the header says, by index: lengths of the lists behind `changes`, tokens and samples without padding, the first
# row of the step's link buffers among all of them, the first place of its sampled tokens, and whether every row has
# one token, from the FutureMap, and samples the next: the device then derives all columns but slots and lengths.
CHANGES, RETURNS, TOKENS, SAMPLES, INCOMING, OUTGOING, SAMPLED, STEADY = range(8)
_HEADER = 8
_ALIGNMENT = 2  # words of 8 bytes: Triton compiles a kernel anew for a pointer that isn't a multiple of 16
_NUM_PINNED = 6  # copies that may be under way before more are made


@dataclass(slots=True, frozen=True)
class Columns(Generic[Column]):
    """Views of one memory, on the host or on the device; all but two hold 32 bit integers."""

    header: Column
    slots: Column  # [S]
    seq_lens: Column  # [S]
    query_starts: Column  # [S + 1]
    sample_offsets: Column  # [R] of the step's tokens
    sample_slots: Column  # [R]
    token_ids: Column  # [T] ~slot where the FutureMap has it
    positions: Column  # [T] 64 bit
    cache_slots: Column  # [T] 64 bit
    changes: Column  # places in the tables [B], blocks [B], slots [F] that tokens returned for, their places [F]


@dataclass(slots=True, frozen=True)
class Places:
    """Where a stage's steps find and leave things; what a stage lacks has no elements."""

    columns: Columns[Tensor]
    tables: Tensor  # [slots + 1, W] int32: the blocks of every slot, and of padding
    block_tables: Tensor  # [most rows, W] int32: of the step's rows
    future: Tensor  # [slots] int64
    returned: Tensor  # [messages * slots] int64
    ids: Tensor  # [most tokens] int64
    incoming: Tensor  # [buffers * most tokens, H]
    outgoing: Tensor  # [buffers * most tokens, H]
    hidden: Tensor  # [most tokens of a padded step, H]
    sampled: Tensor  # [steps * slots] int64
    host_sampled: Tensor  # likewise, in pinned memory


class Layout:
    """Where the columns lie, for so many rows and tokens."""

    def __init__(self, num_rows: int, num_tokens: int) -> None:
        narrow = [_HEADER, num_rows, num_rows, num_rows + 1, num_rows, num_rows, num_tokens]
        self._places: list[tuple[slice, bool]] = []
        self.num_words = 0
        for length, is_wide in [*((each, False) for each in narrow), (num_tokens, True), (num_tokens, True)]:
            start = self.num_words if is_wide else 2 * self.num_words
            self._places.append((slice(start, start + length), is_wide))
            words = length if is_wide else -(-length // 2)
            self.num_words += -(-words // _ALIGNMENT) * _ALIGNMENT

    def over(self, wide: Column, narrow: Column) -> Columns[Column]:
        """The columns in a memory, given as 64 and as 32 bit integers."""
        views: list[Column] = [(wide if is_wide else narrow)[place] for place, is_wide in self._places]
        views.append(narrow[2 * self.num_words :])
        return Columns(*views)


@dataclass(slots=True)
class _Pinned:
    """Host memory, and whether its last copy is over."""

    memory: Tensor
    columns: list[Columns[NDArray[Any]]]
    copied: torch.cuda.Event | None = None


class Staging:
    """The place on the device, and pinned buffers of its size."""

    def __init__(
        self, limits: StepLimits, num_rows: int, padded_tokens: int, num_returns: int, device: torch.device
    ) -> None:
        """`num_rows` is the most that a step has, its padding included; `num_returns` the most messages it takes in."""
        self._layouts = [
            Layout(num_rows, tokens) for tokens in (padded_tokens, max(padded_tokens, limits.max_num_batched_tokens))
        ]
        most_changes = 2 * (limits.most_granted_blocks + limits.max_num_seqs * num_returns)
        num_words = self._layouts[1].num_words + most_changes // 2 + 1
        self._there = torch.zeros(num_words, dtype=torch.int64, device=device)
        narrow = self._there.view(torch.int32)
        self.padded, self.whole = (layout.over(self._there, narrow) for layout in self._layouts)
        self._free = deque(self._pin() for _ in range(_NUM_PINNED if self._there.is_cuda else 1))
        self._filling = self._free[0]

    def begin(self, padded: bool) -> Columns[NDArray[Any]]:
        """Starts a step: columns to be filled."""
        oldest = self._free[0]
        if oldest.copied is None or oldest.copied.query():  # type: ignore[no-untyped-call]
            self._filling = self._free.popleft()
        else:
            self._filling = self._pin()
        return self._filling.columns[0 if padded else 1]

    def send(self, padded: bool, num_changes: int) -> None:
        """Enqueues the copy of the columns and of so much of `changes` on the current stream; never waits."""
        filling = self._filling
        end = self._layouts[0 if padded else 1].num_words + (num_changes + 1) // 2
        self._there[:end].copy_(filling.memory[:end], non_blocking=True)
        if self._there.is_cuda:
            filling.copied = filling.copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            filling.copied.record(torch.cuda.current_stream(self._there.get_device()))
        self._free.append(filling)

    def _pin(self) -> _Pinned:
        memory = torch.zeros_like(self._there, device="cpu", pin_memory=self._there.is_cuda)
        words = memory.numpy()
        return _Pinned(memory, [layout.over(words, words.view(np.int32)) for layout in self._layouts])
