"""The kernels of a CPU: what they fall back on, and that packing changes no result."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from penstock.model.attention import AttentionSpec
from penstock.model.attention_torch import TorchAttention
from penstock.model.cpu import library
from penstock.model.cpu.library import CpuLibrary, load_library
from penstock.model.cpu.packed import PackedGated, PackedLinear, can_pack, padded_rows
from penstock.model.cpu.products import NativeGated, NativeLinear
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


def native_products() -> CpuLibrary:
    found = load_library()
    if found is None:
        pytest.skip("no C compiler on this machine")
    return found


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 16, 100, 193, 400])
@pytest.mark.parametrize("inputs", [40, 600])  # less than a pass of the loops and more
@pytest.mark.parametrize("has_bias", [False, True])
def test_products_of_the_library_are_the_plain_ones_rounded(rows: int, inputs: int, has_bias: bool) -> None:
    native = native_products()
    torch.manual_seed(0)
    x, residual = torch.randn(rows, inputs).bfloat16(), torch.randn(rows, 84).bfloat16()
    weight, bias = torch.randn(84, inputs).bfloat16() / inputs**0.5, torch.randn(84).bfloat16() if has_bias else None
    exact = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    gate, up = exact.chunk(2, dim=-1)
    product = NativeLinear(native, weight, bias)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=2**-8)  # half of bfloat16's last place
    close(product(x).double(), exact)
    close(product(x, residual).double(), exact + residual.double())
    close(NativeGated(native, weight, bias)(x).double(), F.silu(gate) * up)


def test_a_row_of_the_librarys_products_depends_on_no_other_row_and_on_no_thread() -> None:
    native = native_products()
    torch.manual_seed(0)
    x, weight = torch.randn(300, 600).bfloat16(), torch.randn(96, 600).bfloat16()
    for product in (NativeLinear(native, weight, None), NativeGated(native, weight, None)):
        whole = product(x)
        assert torch.equal(whole, torch.cat([product(part) for part in (x[:1], x[1:7], x[7:97], x[97:])]))
        torch.set_num_threads(2)
        try:
            assert torch.equal(whole, product(x))
        finally:
            torch.set_num_threads(1)
        assert product(x[:0]).shape == (0, whole.shape[1])


def test_what_is_no_number_stays_none_and_stays_in_its_row() -> None:
    native = native_products()
    x, weight = torch.ones(8, 40).bfloat16(), torch.ones(32, 40).bfloat16()
    x[2, 3], x[5, 0] = torch.nan, torch.inf
    for product in (NativeLinear(native, weight, None), NativeGated(native, weight, None)):
        y = product(x)
        assert y[2].isnan().all()
        assert y[5].isinf().all()
        assert y[[0, 1, 3, 4, 6, 7]].isfinite().all()


def test_a_processor_that_onednn_packs_no_bfloat16_for_has_the_librarys_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    native_products()
    monkeypatch.setattr("penstock.model.kernels.can_pack", lambda dtype: dtype == torch.float32)
    kernels = make_kernels("cpu", torch.bfloat16)
    assert isinstance(kernels.linear(torch.zeros(16, 16).bfloat16(), None), NativeLinear)
    assert isinstance(kernels.gated(torch.zeros(16, 16).bfloat16(), None), NativeGated)
    assert make_kernels("cpu", torch.float32).linear is PackedLinear
