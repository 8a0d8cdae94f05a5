"""Products of few rows with a large weight, for steps that are bound by reading the weights (`products.cu`).

Within `MAX_ROWS / 2` rows every row is added up in the same order whatever their number, and so it is above.
"""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .driver import Kernel, TensorMap, can_compile, compiled, tensor_map

MAX_ROWS = 128
_INPUTS = 64  # of a tile
_MIN_BOX_ROWS = 16
_MAX_STAGES = 16
_SHARED_BYTES = 222_000  # of a multiprocessor's memory, for rings
_WIDTHS = (64, 80, 96, 112, 128, 160, 192, 208, 224)
_GAIN_OF_TWO, _COST_OF_SPLIT = 0.78, 1.3  # times the time for the same bytes (LOG.md)


@dataclass(slots=True, frozen=True)
class Tiles:
    """How a product is cut: rows of the weight for a program, programs that share the inputs, places in a ring."""

    width: int
    split: int
    stages: int


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
    x = x if x.is_contiguous() else x.contiguous()
    padded, box = padded_rows(rows), max(_MIN_BOX_ROWS, 1 << (rows - 1).bit_length())
    tiles = tiles or tiles_for(padded, len(weight), inputs, gated)
    _kernel(padded, tiles, gated, residual is not None).launch(
        -(-len(weight) // tiles.width) * tiles.split,
        (
            _map_of(weight.data_ptr(), *weight.shape, tiles.width // (1 + gated)),
            _map_of(x.data_ptr(), *x.shape, box),
            ctypes.c_void_p(out.data_ptr()),
            *map(ctypes.c_int, (rows, outputs, inputs, box)),
        ),
    )
    return out


@cache
def tiles_for(padded: int, weight_rows: int, inputs: int, gated: bool) -> Tiles:
    """The cheapest of `possible_tiles`."""
    return min(possible_tiles(padded, weight_rows, inputs, gated), key=lambda each: each[0])[1]


def possible_tiles(padded: int, weight_rows: int, inputs: int, gated: bool) -> list[tuple[float, Tiles]]:
    """Tiles with their cost: what the busiest multiprocessor reads, for one program or for two, which hide more."""
    found = []
    for width, split, together in itertools.product(_WIDTHS, (1, 2), (1, 2)):
        programs, tiles = -(-weight_rows // width) * split, Tiles(width, split, _depth(padded, width, together))
        alone = programs <= _num_multiprocessors() and together == 2
        if alone or not _possible(padded, tiles, gated):
            continue
        rounds = -(-programs // (_num_multiprocessors() * together))
        read = rounds * together * (width + padded) * -(-inputs // split)
        found.append((read * (1.0, _GAIN_OF_TWO)[together - 1] * (1.0, _COST_OF_SPLIT)[split - 1], tiles))
    return found


def serves(weight: Tensor) -> bool:
    """Whether `product` takes such a weight on this device."""
    dense = weight.is_contiguous() and weight.dtype == torch.bfloat16
    aligned = weight.shape[0] % 16 == 0 and weight.shape[1] % 8 == 0
    return dense and aligned and torch.cuda.get_device_capability(weight.device)[0] == 9 and can_compile()


def padded_rows(rows: int) -> int:
    """Rows of the tile that holds so many."""
    return MAX_ROWS // 2 if rows <= MAX_ROWS // 2 else MAX_ROWS


def _stage_bytes(padded: int, width: int) -> int:
    return (padded + width) * _INPUTS * 2


def _depth(padded: int, width: int, together: int) -> int:
    return min(_MAX_STAGES, _SHARED_BYTES // together // _stage_bytes(padded, width))


def _possible(padded: int, tiles: Tiles, gated: bool) -> bool:
    """Whether the kernel takes them: the copies' swizzle wants eighths, and the ring holds the sums afterwards."""
    width = tiles.width // (1 + gated)
    sums_fit = padded * (tiles.width + 8) * 4 <= tiles.stages * _stage_bytes(padded, tiles.width)
    return width % 8 == 0 and width // tiles.split % 4 == 0 and tiles.stages >= 3 and sums_fit


@cache
def _num_multiprocessors() -> int:
    return torch.cuda.get_device_properties("cuda").multi_processor_count


@lru_cache(maxsize=4096)
def _map_of(pointer: int, rows: int, columns: int, box_rows: int) -> TensorMap:
    return tensor_map(pointer, rows, columns, box_rows, _INPUTS)


@cache
def _kernel(padded: int, tiles: Tiles, gated: bool, added: bool) -> Kernel:
    shared_bytes = tiles.stages * _stage_bytes(padded, tiles.width) + 1024  # the ring begins at a multiple of 1024
    image = compiled(source(padded, tiles, gated, added))
    return Kernel(image, "product", threads=2 * padded + 32, shared_bytes=shared_bytes, cluster=tiles.split)


def source(padded: int, tiles: Tiles, gated: bool, added: bool) -> str:
    """The text of one variant."""
    macros = {"ROWS": padded, "BN": tiles.width, "SPLIT": tiles.split, "STAGES": tiles.stages}
    macros |= {"GATED": int(gated), "ADD": int(added)}
    defined = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    return defined + _multiply(tiles.width) + Path(__file__).with_name("products.cu").read_text()


def _multiply(width: int) -> str:
    """The matrix instruction: d [64, width] += a [64, 16] b [width, 16]ᵀ, both in shared memory."""
    count = width // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    sums = ", ".join(f'"+f"((d)[{i}])' for i in range(count))
    instruction = f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.bf16.bf16"
    text = f"{instruction} {{{registers}}}, %{count}, %{count + 1}, 1, 1, 1, 0, 0;"
    return f'#define MULTIPLY(d, a, b) asm volatile("{text}" : {sums} : "l"(a), "l"(b))\n'
