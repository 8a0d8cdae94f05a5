"""The kernels of a CPU: what they fall back on, and that packing changes no result."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from penstock.model.attention import AttentionSpec
from penstock.model.attention_torch import TorchAttention
from penstock.model.cpu import library
from penstock.model.cpu.library import load_library
from penstock.model.cpu.packed import PackedGated, PackedLinear, can_pack, padded_rows
from penstock.model.kernels import TORCH_KERNELS, DenseLinear, make_kernels

torch.set_num_threads(1)


@pytest.fixture
def fresh_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No library is loaded or cached yet."""
    monkeypatch.setattr(library, "load_library", load_library.__wrapped__)
    monkeypatch.setattr("penstock.model.kernels.load_library", load_library.__wrapped__)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_torch_serves_and_the_log_says_so(
    fresh_library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, compiler: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    with caplog.at_level(logging.WARNING):
        kernels = make_kernels("cpu", torch.float32)
    assert isinstance(kernels.attention(AttentionSpec(2, 1, 8)), TorchAttention)
    assert kernels.rms_norm is TORCH_KERNELS.rms_norm
    assert [record.message for record in caplog.records if "plain torch serves" in record.message]


def test_the_environment_can_ask_for_torch(fresh_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CPU_KERNELS", "0")
    assert isinstance(make_kernels("cpu", torch.bfloat16).attention(AttentionSpec(2, 1, 8)), TorchAttention)


def test_the_library_is_compiled_once_into_a_private_folder(fresh_library: Path) -> None:
    if load_library() is None:
        pytest.skip("no C compiler on this machine")
    assert library.load_library() is not None
    (built,) = (fresh_library / "penstock").iterdir()
    assert (fresh_library / "penstock").stat().st_mode & 0o777 == 0o700
    written = built.stat().st_mtime_ns
    assert library.load_library() is not None
    assert built.stat().st_mtime_ns == written


def test_a_cache_that_others_may_write_to_is_not_trusted(fresh_library: Path) -> None:
    (fresh_library / "penstock").mkdir()
    (fresh_library / "penstock").chmod(0o777)
    assert library.load_library() is None


def test_other_types_and_odd_heads_are_torchs() -> None:
    kernels = make_kernels("cpu", torch.float16)
    assert kernels.linear is DenseLinear
    assert isinstance(kernels.attention(AttentionSpec(2, 1, 8)), TorchAttention)
    assert isinstance(make_kernels("cpu", torch.float32).attention(AttentionSpec(2, 1, 512)), TorchAttention)


def test_products_come_in_few_sizes_and_decodes_in_their_own() -> None:
    sizes = [padded_rows(rows) for rows in range(1, 2049)]
    assert sizes[:64] == list(range(1, 65))
    assert all(rows <= size <= rows * 9 / 8 for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) == 64 + 5 * 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 3, 16, 100])
@pytest.mark.parametrize("has_bias", [False, True])
def test_packed_products_are_the_plain_ones(dtype: torch.dtype, rows: int, has_bias: bool) -> None:
    if not can_pack(dtype):
        pytest.skip(f"oneDNN packs no {dtype} here")
    torch.manual_seed(0)
    x, residual = torch.randn(rows, 40).to(dtype), torch.randn(rows, 88).to(dtype)
    weight, bias = torch.randn(88, 40).to(dtype) * 0.2, torch.randn(88).to(dtype) if has_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    gate, up = exact.chunk(2, dim=-1)
    atol, rtol = (1e-5, 1e-5) if dtype == torch.float32 else (3e-2, 2e-2)
    product = PackedLinear(weight, bias)
    torch.testing.assert_close(product(x).double(), exact, atol=atol, rtol=rtol)
    torch.testing.assert_close(product(x, residual).double(), exact + residual.double(), atol=atol, rtol=rtol)
    torch.testing.assert_close(PackedGated(weight, bias)(x).double(), F.silu(gate) * up, atol=atol, rtol=rtol)
