"""`Kernels` for NVIDIA GPUs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import DenseLinear, Kernels
from .attention import make_attention
from .fused import rms_norm, silu_mul


class AddingLinear(DenseLinear):
    """`LinearKernel` that adds to the residual where it lies: the product's last step reads and writes it.

    What a layer is given is its own to change: the embedding's rows, a link's buffer, a graph's input.
    """

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None or self._bias is not None:
            return super().__call__(x, residual)
        return residual.addmm_(x, self._weight.t())


class FusedGated:
    """`GatedKernel`: one product, and one pass over its result."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        return silu_mul(F.linear(x, self._weight, self._bias))


def gpu_kernels(dtype: torch.dtype) -> Kernels:
    """The functions for one type."""
    return Kernels(rms_norm=rms_norm, linear=AddingLinear, gated=FusedGated, attention=partial(make_attention, dtype))
