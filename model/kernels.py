"""The work inside layers, as functions that a device provides; they are chosen in `make_kernels` and nowhere else.

A layer owns parameters; once these are filled it asks for a kernel over them, which may keep a packed copy in place of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import Attention, AttentionSpec
from .attention_torch import TorchAttention
from .cpu.library import CpuLibrary, load_library
from .cpu.native import MAX_GROUPED_HEADS, MAX_HEAD_DIM, NativeAttention, NativeRMSNorm
from .cpu.packed import PackedGated, PackedLinear, can_pack
from .cpu.products import NativeGated, NativeLinear


class LinearKernel(Protocol):
    """x [T, inputs] to x Wᵀ + b [T, outputs], plus the residual if one is given."""

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor: ...


class GatedKernel(Protocol):
    """x [T, inputs] to silu(gate(x)) * up(x) [T, outputs / 2]."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(slots=True, frozen=True)
class Kernels:
    """One device's functions for one element type. The weight of `gated` holds the gate's rows, then up's."""

    rms_norm: Callable[[Tensor, Tensor, float], Tensor]  # (x, weight, eps)
    linear: Callable[[Tensor, Tensor | None], LinearKernel]  # (weight, bias)
    gated: Callable[[Tensor, Tensor | None], GatedKernel]
    attention: Callable[[AttentionSpec], Attention]


class DenseLinear:
    """`LinearKernel` over the weight as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        y = F.linear(x, self._weight, self._bias)
        return y if residual is None else y + residual


class DenseGated:
    """`GatedKernel` as one product."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = F.linear(x, self._weight, self._bias).chunk(2, dim=-1)
        return F.silu(gate) * up


def _torch_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, eps)


TORCH_KERNELS = Kernels(_torch_rms_norm, DenseLinear, DenseGated, TorchAttention)


def make_kernels(device: torch.device | str, dtype: torch.dtype) -> Kernels:
    """The fastest functions at hand for a device and a type; plain torch where there is nothing faster."""
    if torch.device(device).type != "cpu":
        from .gpu.kernels import gpu_kernels  # Triton is only where GPUs are

        return gpu_kernels(dtype)
    library = load_library() if str(dtype).removeprefix("torch.") in CpuLibrary.DTYPES else None
    linear, gated = _cpu_products(library, dtype)
    return Kernels(
        rms_norm=TORCH_KERNELS.rms_norm if library is None else NativeRMSNorm(library, dtype),
        linear=linear,
        gated=gated,
        attention=TorchAttention if library is None else partial(_cpu_attention, library, dtype),
    )


def _cpu_products(
    library: CpuLibrary | None, dtype: torch.dtype
) -> tuple[Callable[[Tensor, Tensor | None], LinearKernel], Callable[[Tensor, Tensor | None], GatedKernel]]:
    if can_pack(dtype):
        return PackedLinear, PackedGated
    if library is not None and dtype == torch.bfloat16:
        return partial(NativeLinear, library), partial(NativeGated, library)
    return DenseLinear, DenseGated


def _cpu_attention(library: CpuLibrary, dtype: torch.dtype, spec: AttentionSpec) -> Attention:
    if spec.head_dim > MAX_HEAD_DIM or spec.num_heads > MAX_GROUPED_HEADS * spec.num_kv_heads:
        return TorchAttention(spec)
    return NativeAttention(spec, library, dtype)
