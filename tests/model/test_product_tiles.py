"""How products of few rows are cut, without a GPU: `model/gpu/products.py` imports no Triton."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.model.gpu import products
from penstock.model.gpu.products import Tiles, most_rows, padded_rows, possible_tiles, source, tiles_for

SHARED_BYTES = 227 * 1024  # of a multiprocessor that one program may take
PADDED = [64, 128, 160, 192, 224, 256]


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_num_multiprocessors", lambda: 132)
    for cached in (tiles_for, most_rows):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("weight_rows", "inputs", "gated", "programs"),
    [(6144, 4096, False, 128), (4096, 4096, False, 128), (24576, 4096, True, 128), (4096, 12288, False, 128)],
)
def test_all_multiprocessors_read_the_same(weight_rows: int, inputs: int, gated: bool, programs: int) -> None:
    tiles = tiles_for(64, weight_rows, inputs, gated)
    assert -(-weight_rows // tiles.width) * tiles.split == programs


@pytest.mark.parametrize(
    ("weight_rows", "inputs", "gated", "most"),
    [
        (6144, 4096, False, 224),  # 96 programs of 132
        (24576, 4096, True, 256),
        (4096, 12288, False, 256),
        (51200, 5120, True, 64),  # several rounds
        (151936, 4096, False, 64),
    ],
)
def test_the_library_takes_what_does_not_fill_the_device(weight_rows: int, inputs: int, gated: bool, most: int) -> None:
    assert most_rows(weight_rows, inputs, gated) == most


@given(st.sampled_from(PADDED), st.integers(1, 5000), st.integers(1, 4000), st.booleans())
def test_every_shape_has_tiles_that_fit(padded: int, sixteenths: int, eighths: int, gated: bool) -> None:
    found = possible_tiles(padded, 16 * sixteenths, 8 * eighths, gated)
    assert found
    for cost, tiles in found:
        ring_bytes, barrier_bytes = tiles.stages * (padded + tiles.width) * 64 * 2, 16 * tiles.stages
        assert cost > 0
        assert ring_bytes + 1024 + barrier_bytes <= SHARED_BYTES  # it begins at a multiple of 1024
        assert padded * (tiles.width + 4) * 4 <= ring_bytes
    assert padded_rows(padded) == padded
    assert padded_rows(padded - 31) == padded


def test_the_text_names_its_variant() -> None:
    text = source(64, Tiles(96, 2, 10), gated=False, added=True)
    for line in ("#define ROWS 64", "#define BN 96", "#define SPLIT 2", "#define STAGES 10", "#define ADD 1"):
        assert line in text
    assert "m64n64k16" in text
    assert "m64n128k16" in source(256, Tiles(192, 1, 4), gated=True, added=False)  # two, for want of registers
