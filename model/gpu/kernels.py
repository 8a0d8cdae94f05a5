"""`Kernels` for NVIDIA GPUs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import DenseLinear, Kernels
from .attention import make_attention
from .fused import rms_norm, silu_mul


class FusedGated:
    """`GatedKernel`: one product, and one pass over its result."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return silu_mul(F.linear(x, self._weight, self._bias))


def gpu_kernels(dtype: torch.dtype) -> Kernels:
    """The functions for one type."""
    return Kernels(rms_norm=rms_norm, linear=DenseLinear, gated=FusedGated, attention=partial(make_attention, dtype))
