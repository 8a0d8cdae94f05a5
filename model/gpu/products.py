"""Products of few rows with a large weight, for steps that are bound by reading the weights (`products.cu`).

A kernel serves up to a number of rows. Within it every row is added up in the same order whatever their number.
"""

from __future__ import annotations

import ctypes
import itertools
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .driver import Kernel, TensorMap, can_compile, compiled, tensor_map

MAX_ROWS = 256
_PADDED_ROWS = (64, 96, 128, 160, 192, 224, MAX_ROWS)  # that a kernel is for
_INPUTS = 64  # of a tile
_MAX_STAGES = 16
_RING_BYTES = 229_376  # of a multiprocessor's memory
_WIDTHS = (64, 80, 96, 112, 128, 160, 192, 208, 224)
_WIDEST_OF_MANY = 192  # above 64 rows; registers hold no more
# Costs, in the time that L2 takes to bring an input of one row of x or of the weight; fitted (LOG.md).
_MULTIPLIED = 1.3  # an input of one row of x, by 64 of the weight
_FROM_MEMORY = 2.5  # an input of one of the weight's rows
_SUMMED = 1 / 2000  # of the whole, each row of x whose sums two programs exchange
_ROUND = 20_000
_LEAST_FILL, _LEAST_FILL_OF_MOST = 0.7, 0.9
_NUM_COMPILERS = 8


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
    padded = padded_rows(rows)
    if tiles is None:
        tiles = tiles_for(padded, len(weight), inputs, gated)
        _compile_all(len(weight), inputs, gated, residual is not None)
    _kernel(padded, tiles, gated, residual is not None).launch(
        _programs(tiles, len(weight)),
        (
            _map_of(weight.data_ptr(), *weight.shape, tiles.width // (1 + gated)),
            _map_of(x.data_ptr(), *x.shape, rows),  # a box with rows beyond x's takes much longer
            ctypes.c_void_p(out.data_ptr()),
            *map(ctypes.c_int, (rows, outputs, inputs)),
        ),
    )
    return out


@cache
def tiles_for(padded: int, weight_rows: int, inputs: int, gated: bool) -> Tiles:
    """The cheapest of `possible_tiles`."""
    return min(possible_tiles(padded, weight_rows, inputs, gated), key=lambda each: each[0])[1]


def possible_tiles(padded: int, weight_rows: int, inputs: int, gated: bool) -> list[tuple[float, Tiles]]:
    """Tiles with their cost: what the busiest multiprocessor waits for, L2, memory or its own products."""
    found = []
    for width, split in itertools.product(_WIDTHS, (1, 2)):
        tiles = Tiles(width, split, min(_MAX_STAGES, _RING_BYTES // _stage_bytes(padded, width)))
        if _possible(padded, tiles, gated):
            slowest = max(width + padded, _MULTIPLIED * _groups(width) * padded, _FROM_MEMORY * width)
            one = slowest * -(-inputs // split) * (1 + padded * _SUMMED * (split - 1)) + _ROUND
            found.append((_rounds(tiles, weight_rows) * one, tiles))
    return found


@cache
def most_rows(weight_rows: int, inputs: int, gated: bool) -> int:
    """Up to which `product` is at least as fast as cuBLAS: to 64 always; above, where one round fills the device."""
    paying = _PADDED_ROWS[0]
    for padded in _PADDED_ROWS[1:]:
        tiles = tiles_for(padded, weight_rows, inputs, gated)
        fill = weight_rows * tiles.split / (_num_multiprocessors() * 64 * _groups(tiles.width))
        least = _LEAST_FILL_OF_MOST if padded == MAX_ROWS else _LEAST_FILL
        if _rounds(tiles, weight_rows) > 1 or fill < least:
            break
        paying = padded
    return paying


def serves(weight: Tensor) -> bool:
    """Whether `product` takes such a weight on this device."""
    dense = weight.is_contiguous() and weight.dtype == torch.bfloat16
    aligned = weight.shape[0] % 16 == 0 and weight.shape[1] % 8 == 0
    return dense and aligned and torch.cuda.get_device_capability(weight.device)[0] == 9 and can_compile()


def padded_rows(rows: int) -> int:
    """Rows of the tile that holds so many."""
    return next(padded for padded in _PADDED_ROWS if padded >= rows)


def _groups(width: int) -> int:
    """Warpgroups, each for 64 outputs."""
    return -(-width // 64)


def _stage_bytes(padded: int, width: int) -> int:
    return (padded + width) * _INPUTS * 2


def _rounds(tiles: Tiles, weight_rows: int) -> int:
    return -(-_programs(tiles, weight_rows) // _num_multiprocessors())


def _programs(tiles: Tiles, weight_rows: int) -> int:
    return -(-weight_rows // tiles.width) * tiles.split


def _possible(padded: int, tiles: Tiles, gated: bool) -> bool:
    """Whether the kernel takes them: the copies' swizzle wants eighths, and the ring holds the sums afterwards."""
    width = tiles.width // (1 + gated)
    sums_fit = padded * (-(-tiles.width // 32) * 32 + 4) * 4 <= tiles.stages * _stage_bytes(padded, tiles.width)
    registers_do = tiles.width <= _WIDEST_OF_MANY or padded == _PADDED_ROWS[0]
    return registers_do and width % 8 == 0 and width // tiles.split % 4 == 0 and tiles.stages >= 3 and sums_fit


@cache
def _num_multiprocessors() -> int:
    return torch.cuda.get_device_properties("cuda").multi_processor_count


@lru_cache(maxsize=4096)
def _map_of(pointer: int, rows: int, columns: int, box_rows: int) -> TensorMap:
    return tensor_map(pointer, rows, columns, box_rows, _INPUTS)


@cache
def _kernel(padded: int, tiles: Tiles, gated: bool, added: bool) -> Kernel:
    shared_bytes = tiles.stages * _stage_bytes(padded, tiles.width) + 1024  # the ring begins at a multiple of 1024
    image = _image(padded, tiles, gated, added).result()
    copiers = 128 if _calls(padded, tiles) > 1 else 32
    return Kernel(image, "product", _groups(tiles.width) * 128 + copiers, shared_bytes, cluster=tiles.split)


@cache
def _compile_all(weight_rows: int, inputs: int, gated: bool, added: bool) -> None:
    """Begins to compile for every number of rows, so that none waits for it later."""
    for padded in _PADDED_ROWS:
        if padded <= most_rows(weight_rows, inputs, gated):
            _image(padded, tiles_for(padded, weight_rows, inputs, gated), gated, added)


@cache
def _image(padded: int, tiles: Tiles, gated: bool, added: bool) -> Future[bytes]:
    return _compilers().submit(compiled, source(padded, tiles, gated, added))


@cache
def _compilers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_NUM_COMPILERS, "compile-products")


def source(padded: int, tiles: Tiles, gated: bool, added: bool) -> str:
    """The text of one variant."""
    calls = _calls(padded, tiles)
    macros = {"ROWS": padded, "BN": tiles.width, "SPLIT": tiles.split, "STAGES": tiles.stages}
    macros |= {"GATED": int(gated), "ADD": int(added), "CALLS": calls}
    defined = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    return defined + _multiply(padded // calls) + Path(__file__).with_name("products.cu").read_text()


def _calls(padded: int, tiles: Tiles) -> int:
    """Matrix instructions of a warpgroup for 16 inputs: three warpgroups find no registers for more sums in one."""
    return 2 if tiles.width > 128 and padded > 192 else 1


def _multiply(width: int) -> str:
    """The matrix instruction: d [64, width] += a [64, 16] b [width, 16]ᵀ, both in shared memory."""
    count = width // 2
    registers = ", ".join(f"%{i}" for i in range(count))
    sums = ", ".join(f'"+f"((d)[{i}])' for i in range(count))
    instruction = f"wgmma.mma_async.sync.aligned.m64n{width}k16.f32.bf16.bf16"
    text = f"{instruction} {{{registers}}}, %{count}, %{count + 1}, 1, 1, 1, 0, 0;"
    return f'#define MULTIPLY(d, a, b) asm volatile("{text}" : {sums} : "l"(a), "l"(b))\n'
