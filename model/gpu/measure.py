"""What this GPU and a stage's steps on it take, measured before the stage is ready. Imports on a machine without one.

Device time between CUDA events, with the queue kept full: where the host launches slower than the device computes, its
pace is what is measured, as it is what a run would see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch

from ...scheduler.cost import StepCost, StepSample, StepShape
from .clock import timing_event

_REPEATS = 5
_COPY_BYTES = 256 << 20
_PRODUCT_SIZE = 4096


@dataclass(slots=True, frozen=True)
class DeviceFigures:
    """A GPU's speed, as simple work reaches it."""

    bytes_per_s: float  # read and written, of a copy
    flops_per_s: float  # of a matrix product


@dataclass(slots=True, frozen=True)
class Measured:
    """What a rank found out on its way to readiness."""

    device: DeviceFigures
    step_cost: StepCost | None = None


def measure_steps(run_step: Callable[[StepShape], None], shapes: Sequence[StepShape]) -> list[StepSample]:
    """The time of each shape of step; `run_step` enqueues one on the current stream. Waits for the device once."""
    events = {shape: _timed(lambda shape=shape: run_step(shape)) for shape in shapes}  # type: ignore[misc]
    torch.cuda.synchronize()
    return [StepSample(shape, _seconds(marks)) for shape, marks in events.items()]


def device_figures(dtype: torch.dtype = torch.bfloat16) -> DeviceFigures:
    """Measures the current GPU within some milliseconds. Takes half a GiB for that long, and gives it back."""
    copies, products = _copies(), _products(dtype)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return DeviceFigures(2 * _COPY_BYTES / _seconds(copies), 2 * _PRODUCT_SIZE**3 / _seconds(products))


def _copies() -> list[torch.cuda.Event]:
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return _timed(lambda: target.copy_(source))


def _products(dtype: torch.dtype) -> list[torch.cuda.Event]:
    left = torch.empty(_PRODUCT_SIZE, _PRODUCT_SIZE, dtype=dtype, device="cuda").normal_()  # zeros draw less power
    right, out = left.clone(), torch.empty_like(left)
    return _timed(lambda: torch.mm(left, right, out=out))


def _timed(work: Callable[[], object]) -> list[torch.cuda.Event]:
    """Marks between the runs of enqueued work; the first run, which loads kernels, is before the first mark."""
    work()
    marks = [timing_event()]
    marks[0].record()
    for _ in range(_REPEATS):
        work()
        marks.append(timing_event())
        marks[-1].record()
    return marks


def _seconds(marks: list[torch.cuda.Event]) -> float:
    return float(median(start.elapsed_time(end) for start, end in pairwise(marks))) / 1000
