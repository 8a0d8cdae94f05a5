"""A step's host arrays on their way to the device: one pinned buffer, one copy, one place where they arrive.

The place is written and read on the compute stream alone, so a step's copy waits for the step before. Arrays are packed
in the order in which they are put: what every step of a shape puts first always lies at the same address, for graphs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_ALIGNMENT = 2  # words of 8 bytes: Triton compiles a kernel anew for a pointer that isn't a multiple of 16


@dataclass(slots=True)
class _Pinned:
    """Host memory, and whether its last copy is over."""

    memory: Tensor
    wide: NDArray[np.int64]
    narrow: NDArray[np.int32]
    copied: torch.cuda.Event | None = None


class Staging:
    """The place on the device, and pinned buffers of its size."""

    def __init__(self, num_words: int, device: torch.device) -> None:
        self._device = device
        self._there = torch.zeros(num_words + num_words % _ALIGNMENT, dtype=torch.int64, device=device)
        self._there_narrow = self._there.view(torch.int32)
        self._free: deque[_Pinned] = deque()
        self._filling: _Pinned | None = None
        self._end = 0

    def begin(self) -> None:
        """Starts a step."""
        self._end = 0
        oldest = self._free[0] if self._free else None
        if oldest is None or not (oldest.copied is None or oldest.copied.query()):  # type: ignore[no-untyped-call]
            memory = torch.empty_like(self._there, device="cpu", pin_memory=self._device.type == "cuda")
            self._filling = _Pinned(memory, memory.numpy(), memory.numpy().view(np.int32))
        else:
            self._filling = self._free.popleft()

    def put(self, values: NDArray[Any], wide: bool, length: int | None = None, filler: int = 0) -> Tensor:
        """Where the values will be, as 64 or 32 bit integers, lengthened by the filler."""
        filling, count = self._filling, values.size
        assert filling is not None, "begin comes first"
        length = count if length is None else length
        place = self.next_place(length, wide)
        host = filling.wide[place] if wide else filling.narrow[place]
        host[:count] = values.reshape(-1)
        host[count:] = filler
        return self._at(place, wide)

    def next_place(self, length: int, wide: bool) -> slice:
        """Takes the next place, in units of the integers that go there."""
        start = self._end if wide else 2 * self._end
        words = length if wide else -(-length // 2)
        self._end += words + words % _ALIGNMENT
        assert self._end <= len(self._there), "a step larger than the limits"
        return slice(start, start + length)

    def fixed(self, lengths: list[tuple[int, bool]]) -> list[Tensor]:
        """Where the first arrays of a step arrive, given their lengths and whether they are wide."""
        self._end = 0
        return [self._at(self.next_place(length, wide), wide) for length, wide in lengths]

    def send(self) -> None:
        """Enqueues the copy on the current stream; never waits."""
        filling = self._filling
        assert filling is not None, "begin comes first"
        self._there[: self._end].copy_(filling.memory[: self._end], non_blocking=True)
        if self._device.type == "cuda":
            filling.copied = filling.copied or torch.cuda.Event()  # type: ignore[no-untyped-call]
            filling.copied.record()
        self._free.append(filling)
        self._filling = None

    def _at(self, place: slice, wide: bool) -> Tensor:
        return self._there[place] if wide else self._there_narrow[place]
