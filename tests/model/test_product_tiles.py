"""How products of few rows are cut, without a GPU: `model/gpu/products.py` imports no Triton."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.model.gpu import products
from penstock.model.gpu.products import Tiles, possible_tiles, source, tiles_for

SHARED_BYTES = 227 * 1024  # of a multiprocessor that one program may take


@pytest.fixture(autouse=True)
def h200(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_num_multiprocessors", lambda: 132)
    tiles_for.cache_clear()


@pytest.mark.parametrize(
    ("weight_rows", "inputs", "gated", "programs"),
    [(6144, 4096, False, 128), (4096, 4096, False, 128), (24576, 4096, True, 256), (4096, 12288, False, 128)],
)
def test_all_multiprocessors_read_the_same(weight_rows: int, inputs: int, gated: bool, programs: int) -> None:
    tiles = tiles_for(64, weight_rows, inputs, gated)
    assert -(-weight_rows // tiles.width) * tiles.split == programs


@given(st.sampled_from([64, 128]), st.integers(1, 5000), st.integers(1, 4000), st.booleans())
def test_every_shape_has_tiles_that_fit(padded: int, sixteenths: int, eighths: int, gated: bool) -> None:
    found = possible_tiles(padded, 16 * sixteenths, 8 * eighths, gated)
    assert found
    for cost, tiles in found:
        ring_bytes = tiles.stages * (padded + tiles.width) * 64 * 2
        assert cost > 0
        assert padded * (tiles.width + 8) * 4 <= ring_bytes <= SHARED_BYTES - 4096


def test_the_text_names_its_variant() -> None:
    text = source(64, Tiles(96, 2, 10), gated=False, added=True)
    for line in ("#define ROWS 64", "#define BN 96", "#define SPLIT 2", "#define STAGES 10", "#define ADD 1"):
        assert line in text
    assert "m64n96k16" in text
