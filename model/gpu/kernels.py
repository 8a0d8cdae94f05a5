"""`Kernels` for NVIDIA GPUs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..kernels import DenseLinear, Kernels
from .attention import make_attention
from .fused import rms_norm, silu_mul
from .products import most_rows, product, serves


class AddingLinear(DenseLinear):
    """`LinearKernel` that adds to the residual where it lies: the product's last step reads and writes it.

    What a layer is given is its own to change: the embedding's rows, a link's buffer, a graph's input.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._max_rows = _rows_of_ours(weight, bias, gated=False)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if len(x) <= self._max_rows:
            return product(x, self._weight, residual)
        if residual is None or self._bias is not None:
            return super().__call__(x, residual)
        return residual.addmm_(x, self._weight.t())


class FusedGated:
    """`GatedKernel`: one product, with few rows by one kernel, else with one pass more over its result."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._max_rows = _rows_of_ours(weight, bias, gated=True)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) <= self._max_rows:
            return product(x, self._weight, gated=True)
        return silu_mul(F.linear(x, self._weight, self._bias))


def _rows_of_ours(weight: Tensor, bias: Tensor | None, gated: bool) -> int:
    """Up to which `product` serves; 0 where it doesn't."""
    return most_rows(*weight.shape, gated) if bias is None and serves(weight) else 0


def gpu_kernels(dtype: torch.dtype) -> Kernels:
    """The functions for one type."""
    return Kernels(rms_norm=rms_norm, linear=AddingLinear, gated=FusedGated, attention=partial(make_attention, dtype))
