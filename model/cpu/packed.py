"""Matrix products with weights packed once for oneDNN, and what follows a product fused into it.

A plain `F.linear` repacks its weight in every call, which at 16 rows costs as much as the product itself.

oneDNN makes a program for each number of rows that it meets, which takes a few milliseconds and over half a megabyte,
and keeps a thousand. So products of many rows are filled up to one of few sizes: those of a prompt's chunks are
otherwise all different.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TYPICAL_ROWS = 16  # the packing is chosen for so many rows; others are served by it too
_MAX_EXACT_ROWS = 64  # decodes, where a copy would show, are computed as they are


def padded_rows(num_rows: int) -> int:
    """For how many rows a product of so many is computed: at most an eighth more."""
    if num_rows <= _MAX_EXACT_ROWS:
        return num_rows
    grain = 1 << (num_rows.bit_length() - 4)
    return -(-num_rows // grain) * grain


def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of this type on this processor."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        PackedLinear(torch.zeros(16, 16, dtype=dtype), None)(torch.zeros(1, 16, dtype=dtype))
    except (AttributeError, RuntimeError):
        return False
    return True


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _TYPICAL_ROWS)
    return packed


def _filled_up(x: Tensor) -> Tensor:
    """x [T, inputs] with rows of zeros up to `padded_rows`; itself where none is missing."""
    num_missing = padded_rows(len(x)) - len(x)
    return F.pad(x, (0, 0, 0, num_missing)) if num_missing else x


class PackedLinear:
    """y = x Wᵀ + b, plus a residual if there is one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = _pack(weight)
        self._bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        num_rows = len(x)
        x = _filled_up(x)
        if residual is None:
            y: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        else:
            y = self._sum(x, _filled_up(residual), self._weight, self._bias, "add")
        return y if len(y) == num_rows else y[:num_rows]


class PackedGated:
    """silu(gate(x)) * up(x) as two products, with the activation fused into one, the multiplication into the other."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        gate, up = weight.chunk(2)
        self._gate, self._up = _pack(gate), _pack(up)
        self._gate_bias: Tensor | None = None
        self._up_bias: Tensor | None = None
        if bias is not None:
            self._gate_bias, self._up_bias = bias.chunk(2)
        self._activated = torch.ops.mkldnn._linear_pointwise.default
        self._multiplied = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor) -> Tensor:
        num_rows = len(x)
        x = _filled_up(x)
        gate = self._activated(x, self._gate, self._gate_bias, "swish", [], "")
        y: Tensor = self._multiplied(x, gate, self._up, self._up_bias, "mul")
        return y if len(y) == num_rows else y[:num_rows]
