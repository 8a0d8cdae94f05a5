"""Products of few rows with a large weight, for steps that are bound by reading the weights.

out [M, N] = x [M, K] Wᵀ with M up to a few hundred. The weights' rows take the place that the matrix instructions give
to many rows, and x's rows the other (the operands are swapped, as in "Tensor cores for small batches" kernels of
FlashInfer and CUTLASS): no row of the instruction is padding. Tiles come by bulk copies (TMA) several steps ahead.
Where N alone gives too few tiles to keep every multiprocessor reading, K is cut too: each cut writes its part in
float32 and the last to arrive adds them up in their order, so that the same step gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def product_kernel(  # type: ignore[no-untyped-def]
    weight, x, out, residual, parts, arrived, rows, outputs, inputs, steps_each, cuts,
    GATED: tl.constexpr, ADD: tl.constexpr, CUT: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of BN outputs and BM rows, over one cut of K."""
    tile = tl.program_id(0)
    cut = tl.program_id(1)
    first_row = tl.program_id(2) * BM
    first = tile * BN
    acc = tl.zeros((BN, BM), tl.float32)
    up = tl.zeros((BN, BM), tl.float32)
    start = cut * steps_each
    end = min(start + steps_each, tl.cdiv(inputs, BK))
    for step in tl.range(start, end, num_stages=STAGES):
        w = weight.load([first, step * BK])
        rows_of_x = x.load([first_row, step * BK]).T
        acc = tl.dot(w, rows_of_x, acc)
        if GATED:
            up = tl.dot(weight.load([outputs + first, step * BK]), rows_of_x, up)
    at_n = first + tl.arange(0, BN)
    at_m = first_row + tl.arange(0, BM)
    place = at_m[:, None] * outputs + at_n[None, :]
    inside = (at_m < rows)[:, None] & (at_n < outputs)[None, :]
    if CUT:
        size = rows.to(tl.int64) * outputs
        tl.store(parts + cut * size + place, acc.T, mask=inside)
        tl.debug_barrier()
        mine = tile + tl.program_id(2) * tl.num_programs(0)
        before = tl.atomic_add(arrived + mine, 1, sem="acq_rel")
        if before == cuts - 1:
            total = tl.zeros((BM, BN), tl.float32)
            for other in range(cuts):
                total += tl.load(parts + other * size + place, mask=inside, other=0.0, cache_modifier=".cg")
            if ADD:
                total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
            tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
            tl.store(arrived + mine, 0)
    else:
        if GATED:
            gate = acc.to(out.dtype.element_ty).to(tl.float32)
            gate = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
            acc = gate * up.to(out.dtype.element_ty).to(tl.float32)
        total = acc.T
        if ADD:
            total += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)
