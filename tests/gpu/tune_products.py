"""Which tiles suit which product: `python tests/gpu/tune_products.py OUT MODEL [ROWS ...]`, with cuBLAS beside them.

The model is 8b or 32b.

Kernels are compiled by many processes first, then timed in graphs over several weights, so that no cache holds them.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.model.gpu.clock import timing_event
from penstock.model.gpu.driver import compiled
from penstock.model.gpu.fused import rms_norm, silu_mul
from penstock.model.gpu.products import Tiles, padded_rows, possible_tiles, product, source, tiles_for

WIDTHS = {"8b": (4096, 4096, 6144, 12288), "32b": (5120, 8192, 10240, 25600)}  # hidden, heads, qkv, intermediate


@dataclass(slots=True, frozen=True)
class Product:
    """One of a layer's products."""

    name: str
    weight_rows: int
    inputs: int
    gated: bool = False
    added: bool = False  # to the residual


def products_of(model: str) -> list[Product]:
    """In a layer's order."""
    hidden, heads, qkv, intermediate = WIDTHS[model]
    return [
        Product("qkv", qkv, hidden),
        Product("o", hidden, heads, added=True),
        Product("gate_up", 2 * intermediate, hidden, gated=True),
        Product("down", hidden, intermediate, added=True),
    ]


NUM_LAYERS = 6
BYTES_PER_S = 4.3e12
NUM_COMPILERS = 14
FEWEST_PROGRAMS, MOST_PROGRAMS = 60, 800

Layer = list[Tensor]  # the weights in `products_of`'s order


def candidates(each: Product, rows: int) -> list[Tiles]:
    found = [tiles for _, tiles in possible_tiles(padded_rows(rows), each.weight_rows, each.inputs, each.gated)]
    return [
        tiles for tiles in found if FEWEST_PROGRAMS <= each.weight_rows / tiles.width * tiles.split <= MOST_PROGRAMS
    ]


def compile_all(products: list[Product], rows_asked: list[int]) -> None:
    """Each kernel once."""
    jobs = {
        source(padded_rows(rows), tiles, each.gated, each.added)
        for rows in rows_asked
        for each in products
        for tiles in candidates(each, rows)
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
    run = product if ours else by_library
    for qkv, o, gate_up, down in layers:
        run(attended, o, hidden)
        run(run(rms_norm(hidden, norm, 1e-6), gate_up, gated=True), down, hidden)
        run(rms_norm(hidden, norm, 1e-6), qkv)


def by_library(x: Tensor, weight: Tensor, residual: Tensor | None = None, gated: bool = False) -> Tensor:
    if residual is not None:
        return residual.addmm_(x, weight.t())
    return silu_mul(F.linear(x, weight)) if gated else F.linear(x, weight)


def run_all(run: Callable[..., Tensor], x: Tensor, weights: list[Tensor], residual: Tensor | None, gated: bool) -> None:
    for weight in weights:
        run(x, weight, residual, gated=gated)


def tune(products: list[Product], layers: list[Layer], rows: int, out_file: Path) -> None:
    """The whole layer, then every product by its tiles."""
    hidden, attended = (
        torch.randn(rows, each.inputs, device="cuda", dtype=torch.bfloat16) for each in (products[0], products[1])
    )
    ours, library = (time_us(partial(run_layers, layers, attended, hidden, which)) for which in (True, False))
    floor = sum(weight.nbytes for weight in layers[0]) / BYTES_PER_S * 1e6
    print(
        f"{rows} rows: a layer's products and norms {ours:.1f} us, cuBLAS {library:.1f}, floor {floor:.1f}", flush=True
    )
    for at, each in enumerate(products):
        x = torch.randn(rows, each.inputs, device="cuda", dtype=torch.bfloat16)
        given = x, [layer[at] for layer in layers], hidden if each.added else None, each.gated
        found = [
            (time_us(partial(run_all, partial(product, tiles=tiles), *given)), tiles)
            for tiles in candidates(each, rows)
        ]
        found.sort(key=lambda timed: timed[0])
        with out_file.open("a") as file:
            tuned = [(us, *astuple(tiles)) for us, tiles in found]
            file.write(json.dumps({"name": each.name, "rows": rows, "us_width_split_stages": tuned}) + "\n")
        floor, library = layers[0][at].nbytes / BYTES_PER_S * 1e6, time_us(partial(run_all, by_library, *given))
        chosen = astuple(tiles_for(padded_rows(rows), each.weight_rows, each.inputs, each.gated))
        best = ", ".join(f"{us:.1f} {astuple(tiles)}" for us, tiles in found[:5])
        print(f"  {each.name}, floor {floor:.1f} us, cuBLAS {library:.1f}, chosen {chosen}: {best}", flush=True)


def main() -> None:
    out, products = Path(sys.argv[1]), products_of(sys.argv[2])
    rows_asked = [int(each) for each in sys.argv[3:]] or [16, 64, 128, 160, 192, 224, 256]
    start_s = time.monotonic()
    compile_all(products, rows_asked)
    print(f"compiled in {time.monotonic() - start_s:.0f} s", flush=True)
    layers = [
        [
            torch.randn(each.weight_rows, each.inputs, device="cuda", dtype=torch.bfloat16) / each.inputs**0.5
            for each in products
        ]
        for _ in range(NUM_LAYERS)
    ]
    for rows in rows_asked:
        tune(products, layers, rows, out / "products.jsonl")


if __name__ == "__main__":
    main()
