"""The largest of each row of logits, which is all that greedy sampling asks for."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .chain import chained, may_follow, wait_for_inputs

_BLOCK = 4096
_PROGRAMS_EACH = 4  # of a multiprocessor
_MAX_CUTS = 16


@triton.jit  # type: ignore[untyped-decorator]
def _largest(  # type: ignore[no-untyped-def]
    logits, out, best, places, arrived, size, stride, each,
    CUTS: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """One cut of a row; the last of a row's programs to arrive compares the cuts."""
    row = tl.program_id(0).to(tl.int64)
    cut = tl.program_id(1)
    may_follow(CHAINED)
    wait_for_inputs(CHAINED)
    start = cut * each
    end = tl.minimum(start + each, size)
    value = tl.full((BLOCK,), float("-inf"), tl.float32)
    place = tl.full((BLOCK,), 2147483647, tl.int32)
    for first in range(start, end, BLOCK):
        at = first + tl.arange(0, BLOCK)
        new = tl.load(logits + row * stride + at, mask=at < end, other=float("-inf")).to(tl.float32)
        larger = (new > value) | ((place == 2147483647) & (at < end))
        value = tl.where(larger, new, value)
        place = tl.where(larger, at, place)
    most = tl.max(value, 0)
    where = tl.min(tl.where(value == most, place, 2147483647), 0)
    if CUTS == 1:
        tl.store(out + row, tl.where(where < size, where, 0).to(tl.int64))
    else:
        tl.store(best + row * CUTS + cut, most)
        tl.store(places + row * CUTS + cut, where)
        tl.debug_barrier()
        if tl.atomic_add(arrived + row, 1, sem="acq_rel") == CUTS - 1:
            others = row * CUTS + tl.arange(0, CUTS)
            values = tl.load(best + others, cache_modifier=".cg")
            most = tl.max(values, 0)
            candidates = tl.where(values == most, tl.load(places + others, cache_modifier=".cg"), 2147483647)
            where = tl.min(candidates, 0)
            tl.store(out + row, tl.where(where < size, where, 0).to(tl.int64))
            tl.store(arrived + row, 0)


class Largest:
    """argmax over rows; the lowest id of equals. A row that holds NaN, as where float16 overflows, has some id too."""

    def __init__(self, device: torch.device) -> None:
        processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._most_programs = _PROGRAMS_EACH * processors
        self._arrived = torch.zeros(self._most_programs, dtype=torch.int32, device=device)

    def __call__(self, logits: Tensor) -> Tensor:
        """logits [R, V] with contiguous rows to ids [R] int64. Enqueued, never waits."""
        rows, size = logits.shape
        out = torch.empty(rows, dtype=torch.int64, device=logits.device)
        if not rows:
            return out
        cuts = 1 << max(0, min(self._most_programs // rows, _MAX_CUTS).bit_length() - 1)
        best = torch.empty(rows * cuts, dtype=torch.float32, device=logits.device)
        places = torch.empty(rows * cuts, dtype=torch.int32, device=logits.device)
        _largest[(rows, cuts)](
            logits,
            out,
            best,
            places,
            self._arrived,
            size,
            logits.stride(0),
            triton.cdiv(size, cuts),
            CUTS=cuts,
            BLOCK=_BLOCK,
            CHAINED=chained(),
            launch_pdl=chained(),
            num_warps=8,
        )
        return out
