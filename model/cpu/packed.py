"""Matrix products with weights packed once for oneDNN, and what follows a product fused into it.

A plain `F.linear` repacks its weight in every call, which at 16 rows costs as much as the product itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TYPICAL_ROWS = 16  # the packing is chosen for so many rows; others are served by it too


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


class PackedLinear:
    """y = x Wᵀ + b, plus a residual if there is one."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = _pack(weight)
        self._bias = bias
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if residual is None:
            y: Tensor = self._product(x, self._weight, self._bias, "none", [], "")
        else:
            y = self._sum(x, residual, self._weight, self._bias, "add")
        return y


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
        gate = self._activated(x, self._gate, self._gate_bias, "swish", [], "")
        y: Tensor = self._multiplied(x, gate, self._up, self._up_bias, "mul")
        return y
