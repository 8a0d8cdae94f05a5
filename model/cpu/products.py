"""Matrix products of bfloat16 weights in the compiled library, where oneDNN has none that are fast.

On a processor without AVX-512 a product of bfloat16 in torch takes several times what one of float32 takes. These keep
the weights in bfloat16, in panels, and sum in float32; see products.c.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn import functional as F

from .library import CpuLibrary

_TILE, _WIDTH, _GROUP, _BLOCK = 6, 16, 4, 192  # those of products.c


class _Product(ctypes.Structure):
    """`struct product` of products.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs")),
        *((name, ctypes.c_int32) for name in ("gated", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "panels", "bias", "residual", "y", "scratch")),
    )


def _panels(weight: Tensor) -> Tensor:
    """[outputs, inputs] as [panels, inputs, _WIDTH], filled up with zeros."""
    outputs, inputs = weight.shape
    filled = F.pad(weight.detach(), (0, 0, 0, -outputs % _WIDTH))
    return filled.view(-1, _WIDTH, inputs).transpose(1, 2).contiguous()


class _Panels:
    """Weights in panels, and the call over them."""

    def __init__(self, library: CpuLibrary, panels: Tensor, bias: Tensor | None, outputs: int, gated: bool) -> None:
        self._multiply = library.product()
        self._panels = panels
        self._bias = None if bias is None else bias.detach().contiguous()
        self._inputs, self._outputs, self._gated = panels.shape[1], outputs, gated

    def multiply(self, x: Tensor, residual: Tensor | None) -> Tensor:
        x = x.contiguous()
        residual = None if residual is None else residual.contiguous()
        rows, threads = len(x), torch.get_num_threads()
        y = x.new_empty(rows, self._outputs)
        size = -(-rows // _TILE) * _TILE * self._inputs + threads * _GROUP * _BLOCK * _WIDTH
        scratch = torch.empty(size)
        product = _Product(
            rows,
            self._inputs,
            self._outputs,
            self._gated,
            threads,
            x.data_ptr(),
            self._panels.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            scratch.data_ptr(),
        )
        self._multiply(ctypes.addressof(product))
        return y


class NativeLinear:
    """`LinearKernel` in the compiled library: y = x Wᵀ + b, plus a residual if there is one."""

    def __init__(self, library: CpuLibrary, weight: Tensor, bias: Tensor | None) -> None:
        self._product = _Panels(library, _panels(weight), bias, len(weight), gated=False)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return self._product.multiply(x, residual)


class NativeGated:
    """`GatedKernel` in the compiled library: silu(gate(x)) * up(x) in one pass over both weights."""

    def __init__(self, library: CpuLibrary, weight: Tensor, bias: Tensor | None) -> None:
        panels = torch.stack([_panels(half) for half in weight.chunk(2)], 1).flatten(0, 1)
        self._product = _Panels(library, panels, bias, len(weight) // 2, gated=True)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product.multiply(x, None)
