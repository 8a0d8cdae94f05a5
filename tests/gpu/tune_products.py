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
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from penstock.model.gpu.clock import timing_event
from penstock.model.gpu.fused import silu_mul
from penstock.model.gpu.products import Tiles, product

SHAPES = {  # outputs, inputs, gated, added to the residual
    "qkv": (6144, 4096, False, False),
    "o": (4096, 4096, False, True),
    "gate_up": (12288, 4096, True, False),
    "down": (4096, 12288, False, True),
    "head": (151936, 4096, False, False),
}
ROWS = (16, 32, 64, 128)
MAX_SHARED = 225_000
BYTES_PER_S = 4.3e12
NUM_COMPILERS = 14


def shared(tiles: Tiles, gated: bool) -> int:
    """Bytes of a program's buffers."""
    return tiles.stages * (tiles.outputs * (1 + gated) + tiles.rows) * tiles.inputs * 2


def candidates(rows: int, gated: bool) -> list[Tiles]:
    """Those whose buffers fit and are deep enough to hide the memory's latency."""
    width, found = max(16, triton.next_power_of_2(rows)), []
    for outputs, inputs, warps in itertools.product((64, 128), (64, 128), (4, 8)):
        if (outputs * width * (1 + gated) > 128 * 128 and warps == 4) or (outputs == 64 and warps == 8):
            continue
        each = shared(Tiles(outputs, width, inputs, 1), gated)
        for stages in {min(MAX_SHARED // each, 8), min(MAX_SHARED // each // 2, 6)}:
            if stages >= 3:
                found.append(Tiles(outputs, width, inputs, stages, warps))
    return found


def tensors(name: str, rows: int, copies: int) -> tuple[list[Tensor], Tensor, Tensor]:
    outputs, inputs, gated, _ = SHAPES[name]
    weights = [
        torch.randn(outputs * (1 + gated), inputs, device="cuda", dtype=torch.bfloat16) / 64 for _ in range(copies)
    ]
    x = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16)
    return weights, x, torch.zeros(rows, outputs, device="cuda", dtype=torch.bfloat16)


def compile_some(jobs: list[tuple[str, int, Tiles]]) -> None:
    """Compiles by launching."""
    for name, rows, tiles in jobs:
        (weight,), x, out = tensors(name, rows, 1)
        _, _, gated, added = SHAPES[name]
        try:
            product(x, weight, out if added else None, gated=gated, tiles=tiles)
        except Exception as error:
            print(name, rows, tiles, type(error).__name__, str(error)[:100], flush=True)
        torch.cuda.synchronize()
        del weight


def time_us(work: Callable[[Tensor], object], weights: list[Tensor]) -> float:
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
        residual = out.zero_() if added else None
        ours = partial(product, x, residual=residual, gated=gated, tiles=tiles)
        try:
            off = float((ours(weights[0]).float() - exact).norm() / exact.norm())
            us = time_us(ours, weights)
        except Exception as error:
            print(name, rows, tiles, type(error).__name__, flush=True)
            continue
        assert off < 0.01, (name, rows, tiles, off)
        found.append((us, tiles))
    found.sort(key=lambda each: each[0])
    floor = outputs * (1 + gated) * inputs * 2 / BYTES_PER_S * 1e6
    with out_file.open("a") as file:
        row = {"name": name, "rows": rows, "library_us": plain, "floor_us": floor}
        file.write(json.dumps(row | {"found": [{"us": us} | asdict(tiles) for us, tiles in found]}) + "\n")
    best = " | ".join(f"{us:.1f} us {tuple(asdict(tiles).values())}" for us, tiles in found[:3])
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
