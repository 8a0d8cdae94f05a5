"""Kernels that start while the one before still runs (programmatic dependent launch, Hopper and later).

A chained kernel is launched as soon as every program of the one before has said that it may be followed. Before it has
waited for its inputs it writes nothing, and reads nothing but weights. The wait ends when the kernel before has ended,
which has waited itself, and so all before it.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@cache
def chained() -> bool:
    """Whether this device's kernels can be."""
    return torch.cuda.get_device_capability()[0] >= 9


@triton.jit  # type: ignore[untyped-decorator]
def may_follow(CHAINED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The next kernel may start."""
    if CHAINED:
        gdc_launch_dependents()


@triton.jit  # type: ignore[untyped-decorator]
def wait_for_inputs(CHAINED: tl.constexpr):  # type: ignore[no-untyped-def]
    """What other kernels have written is there from here on."""
    if CHAINED:
        gdc_wait()
