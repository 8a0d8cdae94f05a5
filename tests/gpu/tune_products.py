"""Which tiles suit which product: `python tests/gpu/tune_products.py OUT [ROWS ...]`, with cuBLAS beside them.

Kernels are compiled by many processes first, then timed in graphs over several weights, so that no cache holds them.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from triton.tools.tensor_descriptor import TensorDescriptor

from penstock.model.gpu.clock import timing_event
from penstock.model.gpu.fused import silu_mul
from penstock.model.gpu.products import product_kernel

SHAPES = {  # outputs, inputs, gated, added to the residual
    "qkv": (6144, 4096, False, False),
    "o": (4096, 4096, False, True),
    "gate_up": (12288, 4096, True, False),
    "down": (4096, 12288, False, True),
    "head": (151936, 4096, False, False),
}
ROWS = (16, 32, 64, 128, 256)
CUTS = (1, 2, 3, 4, 6, 8)
MAX_SHARED = 225_000
BYTES_PER_S = 4.3e12
NUM_COMPILERS = 14
SPACE = 8 * 256 * 6144  # floats of parts


@dataclass(frozen=True)
class Tiles:
    """One way to cut a product."""

    bn: int
    bm: int
    bk: int
    stages: int
    warps: int

    def shared(self, gated: bool) -> int:
        return self.stages * (self.bn * (1 + gated) + self.bm) * self.bk * 2


def candidates(rows: int, gated: bool) -> list[Tiles]:
    """Those whose buffers fit and are deep enough to hide the memory's latency."""
    bm = max(16, triton.next_power_of_2(rows))
    found = []
    for bn, bk, warps in itertools.product((64, 128), (64, 128), (4, 8)):
        for width in {min(bm, 256), min(bm, 128)}:
            large = bn * width * (1 + gated) > 128 * 128
            if (large and warps == 4) or (bn == 64 and warps == 8):
                continue
            each = Tiles(bn, width, bk, 1, warps).shared(gated)
            for stages in {min(MAX_SHARED // each, 8), min(MAX_SHARED // each // 2, 6)}:
                if stages >= 3:
                    found.append(Tiles(bn, width, bk, stages, warps))
    return found


def launch(tiles: Tiles, cuts: int, weight: Tensor, x: Tensor, out: Tensor, gated: bool, added: bool) -> None:
    """The product by these tiles."""
    rows, outputs, inputs = len(x), out.shape[1], x.shape[1]
    steps = triton.cdiv(inputs, tiles.bk)
    grid = (triton.cdiv(outputs, tiles.bn), cuts, triton.cdiv(rows, tiles.bm))
    product_kernel[grid](
        TensorDescriptor.from_tensor(weight, [tiles.bn, tiles.bk]),
        TensorDescriptor.from_tensor(x, [tiles.bm, tiles.bk]),
        *(out, out, workspace()[0], workspace()[1], rows, outputs, inputs, triton.cdiv(steps, cuts), cuts),
        GATED=gated, ADD=added, CUT=cuts > 1, BN=tiles.bn, BM=tiles.bm, BK=tiles.bk, STAGES=tiles.stages,
        num_warps=tiles.warps,
    )  # fmt: skip


_SPACE: list[Tensor] = []


def workspace() -> list[Tensor]:
    if not _SPACE:
        _SPACE.append(torch.empty(SPACE, dtype=torch.float32, device="cuda"))
        _SPACE.append(torch.zeros(1 << 16, dtype=torch.int32, device="cuda"))
    return _SPACE


def tensors(name: str, rows: int, copies: int) -> tuple[list[Tensor], Tensor, Tensor]:
    outputs, inputs, gated, _ = SHAPES[name]
    weights = [
        torch.randn(outputs * (1 + gated), inputs, device="cuda", dtype=torch.bfloat16) / 64 for _ in range(copies)
    ]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    return weights, x, torch.zeros(rows, outputs, device="cuda", dtype=torch.bfloat16)


def cut_choices(name: str, tiles: Tiles, rows: int) -> list[int]:
    outputs, _, gated, _ = SHAPES[name]
    if gated or name == "head":
        return [1]
    programs = triton.cdiv(outputs, tiles.bn) * triton.cdiv(rows, tiles.bm)
    return [
        cuts for cuts in CUTS if 60 <= programs * cuts <= 800 and (cuts == 1 or rows * outputs * cuts < 8 * 256 * 6144)
    ]


def compile_some(jobs: list[tuple[str, int, Tiles]]) -> None:
    """Compiles by launching."""
    for name, rows, tiles in jobs:
        (weight,), x, out = tensors(name, rows, 1)
        choices = cut_choices(name, tiles, rows)
        for cuts in {choices[0], choices[-1]} if choices else ():
            try:
                launch(tiles, cuts, weight, x, out, *SHAPES[name][2:])
            except Exception as error:
                print(name, rows, tiles, cuts, type(error).__name__, str(error)[:100], flush=True)
                break
        torch.cuda.synchronize()
        del weight


def time_us(work: Callable[[Tensor], None], weights: list[Tensor]) -> float:
    """Mean time of one product in a graph of all weights, twice."""
    work(weights[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weight in weights * 2:
            work(weight)
    graph.replay()
    start, end = timing_event(), timing_event()
    start.record()
    for _ in range(4):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / (8 * len(weights))


def tune(name: str, rows: int, out_file: Path) -> str:
    outputs, inputs, gated, added = SHAPES[name]
    copies = 1 + int(200e6 // (outputs * (1 + gated) * inputs * 2))
    weights, x, out = tensors(name, rows, max(2, copies))

    def library(weight: Tensor) -> None:
        if added:
            out.addmm_(x, weight.t())
        elif gated:
            silu_mul(F.linear(x, weight))
        else:
            F.linear(x, weight)

    plain = time_us(library, weights)
    exact = F.linear(x, weights[0])
    exact = (silu_mul(exact) if gated else exact).float()
    found = []
    for tiles in candidates(rows, gated):
        for cuts in cut_choices(name, tiles, rows):
            try:
                out.zero_()
                launch(tiles, cuts, weights[0], x, out, gated, added)
                error = float((out.float() - exact).norm() / exact.norm())
                if error > 0.01:
                    print("WRONG", name, rows, tiles, cuts, error, flush=True)
                    continue

                def ours(weight: Tensor, tiles: Tiles = tiles, cuts: int = cuts) -> None:
                    launch(tiles, cuts, weight, x, out, gated, added)

                us = time_us(ours, weights)
            except Exception as error:
                print(name, rows, tiles, cuts, type(error).__name__, flush=True)
                continue
            found.append((us, cuts, tiles))
    found.sort(key=lambda each: each[0])
    floor = outputs * (1 + gated) * inputs * 2 / BYTES_PER_S * 1e6
    with out_file.open("a") as file:
        row = {"name": name, "rows": rows, "library_us": plain, "floor_us": floor}
        found_rows = [{"us": us, "cuts": cuts} | asdict(tiles) for us, cuts, tiles in found]
        file.write(json.dumps(row | {"found": found_rows}) + "\n")
    best = " | ".join(f"{us:.1f} us {cuts} cuts {tuple(asdict(t).values())}" for us, cuts, t in found[:3])
    return f"{name} {rows}: library {plain:.1f} us, floor {floor:.1f}; {best}"


def main() -> None:
    out = Path(sys.argv[1])
    rows_asked = [int(each) for each in sys.argv[2:] if each != "--compile-only"] or list(ROWS)
    start_s = time.monotonic()
    jobs = [(n, r, tiles) for n in ("qkv", "o", "gate_up") for r in rows_asked for tiles in candidates(r, SHAPES[n][2])]
    with multiprocessing.get_context("spawn").Pool(NUM_COMPILERS) as pool:
        pool.map(compile_some, [jobs[i::NUM_COMPILERS] for i in range(NUM_COMPILERS)])
    print(f"{len(jobs)} candidates compiled in {time.monotonic() - start_s:.0f} s", flush=True)
    if "--compile-only" in sys.argv:
        return
    for rows, name in itertools.product(rows_asked, SHAPES):
        print(tune(name, rows, out / "products.jsonl"), flush=True)
    print(f"tuned in {time.monotonic() - start_s:.0f} s")


if __name__ == "__main__":
    main()
