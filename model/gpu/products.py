"""Products of few rows with a large weight, for steps that are bound by reading the weights.

The weights' rows take the place that the matrix instruction gives to many rows, and the step's rows the other: none of
the instruction is padding. Tiles come by bulk copies (TMA), several steps ahead. Every row is added up in the same
order whatever the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import chain
from .chain import may_follow, wait_for_inputs

MAX_ROWS = 64  # above, cuBLAS is faster on an H200 (LOG.md)
_MAX_CHAINED_ROWS = 32  # above, to start early costs more than it gains
_MAX_SHARED = 225_000  # bytes of a multiprocessor's memory that a program may take
_MAX_STAGES = 8
_ALIGNMENT = 16  # bytes, of a row


@triton.jit  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    weight, x, residual, out, rows, outputs, inputs,
    GATED: tl.constexpr, ADD: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    """BN outputs of all rows."""
    first = tl.program_id(0) * BN
    at_n = first + tl.arange(0, BN)
    at_m = tl.arange(0, BM)
    wait_for_inputs(CHAINED)
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    for k in tl.range(0, inputs, BK, num_stages=STAGES):
        w = weight.load([first, k])
        given = x.load([0, k]).T
        acc = tl.dot(w, given, acc)
        if GATED:
            up = tl.dot(weight.load([outputs + first, k]), given, up)
    may_follow(CHAINED)
    if GATED:
        gate = acc.to(out.dtype.element_ty).to(tl.float32)
        gate = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
        acc = gate * up.to(out.dtype.element_ty).to(tl.float32)
    result = acc.T
    place = at_m[:, None].to(tl.int64) * outputs + at_n[None, :]
    inside = (at_m < rows)[:, None] & (at_n < outputs)[None, :]
    if ADD:
        result += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)


@dataclass(slots=True, frozen=True)
class Tiles:
    """How a product is cut."""

    outputs: int
    rows: int
    inputs: int
    stages: int
    warps: int = 4


def tiles_for(rows: int, gated: bool) -> Tiles:
    """Measured on an H200 (LOG.md): narrow tiles; deep buffers, or two programs to a multiprocessor where gated."""
    width = max(16, triton.next_power_of_2(rows))
    inputs = 64 if gated and width > 32 else 128
    bytes_of_stage = (64 * (1 + gated) + width) * inputs * 2
    return Tiles(64, width, inputs, min(_MAX_STAGES, _MAX_SHARED // (1 + gated) // bytes_of_stage))


def serves(weight: Tensor) -> bool:
    """Whether `product` takes such a weight on this device."""
    dense = weight.is_contiguous() and weight.dtype in (torch.bfloat16, torch.float16)
    aligned = weight.shape[1] * weight.element_size() % _ALIGNMENT == 0
    return dense and aligned and torch.cuda.get_device_capability(weight.device)[0] == 9


def chained(rows: int) -> bool:
    """Whether a product of so many rows starts while the kernel before still runs."""
    return rows <= _MAX_CHAINED_ROWS and chain.chained()


def product(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, gated: bool = False, tiles: Tiles | None = None
) -> Tensor:
    """x [M, K] Wᵀ, added to the residual [M, N] where it lies, or gated: silu(gate) * up of a W that holds both.

    M is at most `MAX_ROWS`; W [N, K], or [2 N, K] with the gate's rows first.
    """
    rows, inputs = x.shape
    outputs = len(weight) // (1 + gated)
    out = residual if residual is not None else x.new_empty(rows, outputs)
    if not rows:
        return out
    tiles = tiles or tiles_for(rows, gated)
    x = x if x.is_contiguous() else x.contiguous()
    _product[(triton.cdiv(outputs, tiles.outputs),)](
        TensorDescriptor.from_tensor(weight, [tiles.outputs, tiles.inputs]),
        TensorDescriptor.from_tensor(x, [tiles.rows, tiles.inputs]),
        out,
        out,
        rows,
        outputs,
        inputs,
        GATED=gated,
        ADD=residual is not None,
        BN=tiles.outputs,
        BM=tiles.rows,
        BK=tiles.inputs,
        STAGES=tiles.stages,
        CHAINED=chained(rows),
        launch_pdl=chained(rows),
        num_warps=tiles.warps,
    )
    return out
