"""Which tiles suit which product: `python tests/gpu/tune_products.py OUT [ROWS ...]`, with cuBLAS beside them.

Kernels are compiled by many processes first, then timed in graphs over several weights, so that no cache holds them.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.model.gpu.clock import timing_event
from penstock.model.gpu.driver import compiled
from penstock.model.gpu.fused import rms_norm, silu_mul
from penstock.model.gpu.products import Tiles, padded_rows, possible_tiles, product, source, tiles_for

SHAPES = {  # rows of the weight, inputs, gated, added to the residual
    "qkv": (6144, 4096, False, False),
    "o": (4096, 4096, False, True),
    "gate_up": (24576, 4096, True, False),
    "down": (4096, 12288, False, True),
}
NUM_LAYERS = 8
BYTES_PER_S = 4.3e12
NUM_COMPILERS = 14
MOST_PROGRAMS = 280  # more than two to each multiprocessor

Layer = list[Tensor]  # the weights in SHAPES' order


def candidates(name: str, rows: int) -> list[Tiles]:
    weight_rows, inputs, gated, _ = SHAPES[name]
    found = possible_tiles(padded_rows(rows), weight_rows, inputs, gated)
    return [tiles for _, tiles in found if 90 <= weight_rows / tiles.width * tiles.split <= MOST_PROGRAMS]


def compile_all(rows_asked: list[int]) -> None:
    """Each kernel once."""
    jobs = {
        source(padded_rows(rows), tiles, gated, added)
        for rows in rows_asked
        for name, (_, _, gated, added) in SHAPES.items()
        for tiles in candidates(name, rows)
    }
    with multiprocessing.get_context("spawn").Pool(NUM_COMPILERS) as pool:
        pool.map(compiled, jobs, chunksize=1)


def time_us(work: Callable[[], object]) -> float:
    """Mean time in a graph, of one layer."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    start, end = timing_event(), timing_event()
    start.record()
    for _ in range(6):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / (6 * NUM_LAYERS)


def run_layers(layers: list[Layer], attended: Tensor, hidden: Tensor, ours: bool) -> None:
    """The products and norms of layers, without what lies between qkv and o."""
    norm = torch.ones_like(hidden[0])
    for qkv, o, gate_up, down in layers:
        if ours:
            product(attended, o, hidden)
            product(product(rms_norm(hidden, norm, 1e-6), gate_up, gated=True), down, hidden)
            product(rms_norm(hidden, norm, 1e-6), qkv)
        else:
            hidden.addmm_(attended, o.t())
            hidden.addmm_(silu_mul(F.linear(rms_norm(hidden, norm, 1e-6), gate_up)), down.t())
            F.linear(rms_norm(hidden, norm, 1e-6), qkv)


def run_one(weights: list[Tensor], x: Tensor, residual: Tensor | None, gated: bool, tiles: Tiles) -> None:
    for weight in weights:
        product(x, weight, residual, gated=gated, tiles=tiles)


def tune(layers: list[Layer], rows: int, out_file: Path) -> None:
    """The whole layer, then every product by its tiles."""
    hidden, attended = (torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    ours, library = (time_us(partial(run_layers, layers, attended, hidden, which)) for which in (True, False))
    floor = sum(weight.nbytes for weight in layers[0]) / BYTES_PER_S * 1e6
    print(
        f"{rows} rows: a layer's products and norms {ours:.1f} us, cuBLAS {library:.1f}, floor {floor:.1f}", flush=True
    )
    for at, (name, (weight_rows, inputs, gated, added)) in enumerate(SHAPES.items()):
        x, weights = torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16), [layer[at] for layer in layers]
        residual = hidden if added else None
        found = [
            (time_us(partial(run_one, weights, x, residual, gated, tiles)), tiles) for tiles in candidates(name, rows)
        ]
        found.sort(key=lambda each: each[0])
        with out_file.open("a") as file:
            tuned = [(us, *astuple(tiles)) for us, tiles in found]
            file.write(json.dumps({"name": name, "rows": rows, "us_width_split_stages": tuned}) + "\n")
        chosen = astuple(tiles_for(padded_rows(rows), weight_rows, inputs, gated))
        best = ", ".join(f"{us:.1f} {astuple(tiles)}" for us, tiles in found[:5])
        print(f"  {name}, floor {weights[0].nbytes / BYTES_PER_S * 1e6:.1f} us, chosen {chosen}: {best}", flush=True)


def main() -> None:
    out, rows_asked = Path(sys.argv[1]), [int(each) for each in sys.argv[2:]] or [16, 64, 128]
    start_s = time.monotonic()
    compile_all(rows_asked)
    print(f"compiled in {time.monotonic() - start_s:.0f} s", flush=True)
    layers = [
        [
            torch.randn(rows, inputs, device="cuda", dtype=torch.bfloat16) / inputs**0.5
            for rows, inputs, _, _ in SHAPES.values()
        ]
        for _ in range(NUM_LAYERS)
    ]
    for rows in rows_asked:
        tune(layers, rows, out / "products.jsonl")


if __name__ == "__main__":
    main()
