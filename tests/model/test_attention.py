"""The compiled attention and the one in torch give what the formula gives, in any mix of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from penstock.configs.rope_config import RopeConfig
from penstock.model import attention_torch
from penstock.model.attention import Attention, AttentionSpec
from penstock.model.attention_torch import TorchAttention
from penstock.model.batch import Batch
from penstock.model.cpu.library import load_library
from penstock.model.cpu.native import NativeAttention, NativeRMSNorm
from penstock.model.kv_cache import KVCache, LayerCache
from penstock.model.rope import Rotary

torch.set_num_threads(1)

LIBRARY = load_library()
NATIVE = pytest.mark.skipif(LIBRARY is None, reason="no C compiler on this machine")
BACKENDS = ["torch", pytest.param("native", marks=NATIVE)]
ROWS = [(0, 19), (7, 1), (40, 1), (33, 18), (0, 1), (5, 3)]  # (computed before, tokens of this step)
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2}


@dataclass
class Problem:
    """A step over a cache that already holds what was computed before."""

    spec: AttentionSpec
    cache: LayerCache
    batch: Batch
    qkv: Tensor

    def solve(self, attention: Attention, rope: RopeConfig) -> Tensor:
        rotation = Rotary(rope).at(self.batch.positions)
        return attention.attend(self.qkv, rotation, self.cache, self.batch)


def make_problem(
    spec: AttentionSpec, dtype: torch.dtype, rows: list[tuple[int, int]], block_size: int, scale: float = 1.0
) -> Problem:
    torch.manual_seed(0)
    ends = [start + count for start, count in rows]
    width = max(-(-end // block_size) for end in ends)
    cache = KVCache(1, len(rows) * width, block_size, spec.num_kv_heads, spec.head_dim, dtype).layer(0)
    cache.flat_keys.normal_()
    cache.flat_values.normal_()
    table = np.random.default_rng(0).permutation(len(rows) * width).reshape(len(rows), width).astype(np.int32)
    positions = [np.arange(start, end) for (start, _), end in zip(rows, ends, strict=True)]
    slots = [table[i][p // block_size] * block_size + p % block_size for i, p in enumerate(positions)]
    starts = np.cumsum([0, *(count for _, count in rows)]).astype(np.int32)
    total, heads = int(starts[-1]), spec.num_heads + 2 * spec.num_kv_heads
    batch = Batch(
        num_tokens=total,
        num_rows=len(rows),
        max_query_len=max(count for _, count in rows),
        max_seq_len=max(ends),
        all_decode=total == len(rows),
        token_ids=torch.zeros(total, dtype=torch.int64),
        positions=torch.from_numpy(np.concatenate(positions)),
        cache_slots=torch.from_numpy(np.concatenate(slots).astype(np.int64)),
        query_starts=torch.from_numpy(starts),
        seq_lens=torch.tensor(ends, dtype=torch.int32),
        block_table=torch.from_numpy(table),
        host_query_starts=starts,
        host_seq_lens=np.asarray(ends, np.int32),
    )
    return Problem(spec, cache, batch, (torch.randn(total, heads * spec.head_dim) * scale).to(dtype))


def by_the_formula(problem: Problem, rope: RopeConfig) -> Tensor:
    """One query after the other, in float64, over the cache as the backend left it."""
    spec, batch, dim = problem.spec, problem.batch, problem.spec.head_dim
    queries = problem.qkv.float().view(batch.num_tokens, -1, dim)[:, : spec.num_heads]
    if spec.q_norm is not None:
        queries = F.rms_norm(queries, (dim,), spec.q_norm.float(), spec.norm_eps)
    queries = Rotary(rope).at(batch.positions).apply(queries).double()
    answers = []
    for token, (query, position) in enumerate(zip(queries, batch.positions.tolist(), strict=True)):
        row = int(np.searchsorted(batch.host_query_starts, token, side="right")) - 1
        first = 0 if spec.window is None else max(0, position + 1 - spec.window)
        blocks = batch.block_table[row].long()
        group = spec.num_heads // spec.num_kv_heads
        keys = problem.cache.keys[blocks].flatten(0, 1)[first : position + 1].double().repeat_interleave(group, 1)
        values = problem.cache.values[blocks].flatten(0, 1)[first : position + 1].double().repeat_interleave(group, 1)
        weights = torch.einsum("hd,khd->hk", query, keys).mul(spec.scale).softmax(-1)
        answers.append(torch.einsum("hk,khd->hd", weights, values).flatten())
    return torch.stack(answers).float()


def make_backend(name: str, spec: AttentionSpec, dtype: torch.dtype) -> Attention:
    if name == "torch":
        return TorchAttention(spec)
    assert LIBRARY is not None
    return NativeAttention(spec, LIBRARY, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 6, 100])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "block_size"),
    [(4, 4, 8, 1), (6, 2, 10, 4), (8, 2, 64, 16), (4, 1, 128, 32), (16, 2, 24, 16), (2, 1, 256, 8), (32, 1, 16, 20)],
)
def test_attention_is_the_formula(
    backend: str, dtype: torch.dtype, window: int | None, heads: int, kv_heads: int, dim: int, block_size: int
) -> None:
    spec = AttentionSpec(heads, kv_heads, dim, window)
    rope = RopeConfig(theta=1e4, rotary_dim=dim)
    problem = make_problem(spec, dtype, ROWS, block_size)
    answer = problem.solve(make_backend(backend, spec, dtype), rope)
    torch.testing.assert_close(answer.float(), by_the_formula(problem, rope), atol=TOLERANCE[dtype], rtol=1e-2)


def test_rows_may_be_gathered_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rope = RopeConfig(theta=1e4, rotary_dim=8)
    for rows in ([*ROWS, (9, 1), (21, 1)], [(n, 1) for n in (50, 3, 0, 17, 31)]):
        problem = make_problem(AttentionSpec(4, 2, 8), torch.float32, rows, 4)
        together = problem.solve(TorchAttention(problem.spec), rope)
        problem.batch.prepared.clear()
        with monkeypatch.context() as patch:
            patch.setattr(attention_torch, "_GATHERED_KEYS", 2 * 52)
            apart = problem.solve(TorchAttention(problem.spec), rope)
        (groups,) = problem.batch.prepared.values()
        assert [len(table) for table, _ in groups] == [2] * (len(groups) - 1) + [1]
        torch.testing.assert_close(apart, together)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_head_norms_and_partial_rotations_come_before_the_scores(backend: str, interleaved: bool) -> None:
    spec = AttentionSpec(4, 2, 24, None, torch.rand(24) + 0.5, torch.rand(24) + 0.5, 1e-6)
    rope = RopeConfig(theta=1e4, rotary_dim=12, interleaved=interleaved)
    problem = make_problem(spec, torch.float32, ROWS, 4)
    answer = problem.solve(make_backend(backend, spec, torch.float32), rope)
    torch.testing.assert_close(answer, by_the_formula(problem, rope), atol=2e-5, rtol=1e-4)
    keys = problem.qkv.view(problem.batch.num_tokens, -1, 24)[:, 4:6]
    expected = Rotary(rope).at(problem.batch.positions).apply(F.rms_norm(keys, (24,), spec.k_norm, 1e-6))
    torch.testing.assert_close(problem.cache.flat_keys[problem.batch.cache_slots], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_scores_and_decodes_alone_are_the_formula_too(backend: str) -> None:
    spec, rope = AttentionSpec(8, 2, 16), RopeConfig(theta=1e4, rotary_dim=16)
    problem = make_problem(spec, torch.float32, [(31, 1), (0, 1), (64, 1), (15, 1)], 16, scale=60.0)
    answer = problem.solve(make_backend(backend, spec, torch.float32), rope)
    torch.testing.assert_close(answer, by_the_formula(problem, rope), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [ROWS, [(31, 1), (0, 1), (64, 1), (15, 1)]], ids=["mixed", "decodes"])
def test_nan_in_the_cache_stays_with_its_sequence(backend: str, rows: list[tuple[int, int]]) -> None:
    """Rows shorter than the longest have blocks of nobody knows whom behind their own."""
    spec, rope = AttentionSpec(4, 2, 16), RopeConfig(theta=1e4, rotary_dim=16)
    problem = make_problem(spec, torch.float32, rows, 16)
    table, longest = problem.batch.block_table, int(problem.batch.seq_lens.argmax())
    expected = problem.solve(make_backend(backend, spec, torch.float32), rope)
    for memory in (problem.cache.keys, problem.cache.values):
        memory[table[longest].long()] = math.nan
    for row, length in enumerate(problem.batch.seq_lens.tolist()):
        table[row, -(-length // 16) :] = table[longest, 0]
    answer = problem.solve(make_backend(backend, spec, torch.float32), rope)
    own = torch.from_numpy(np.repeat(np.arange(len(rows)), [count for _, count in rows]) != longest)
    assert torch.equal(answer[own], expected[own])


@NATIVE
@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    spec, rope = AttentionSpec(8, 2, 64), RopeConfig(theta=1e4, rotary_dim=64)
    alone = make_problem(spec, torch.bfloat16, ROWS, 16)
    expected = alone.solve(make_backend("native", spec, torch.bfloat16), rope)
    torch.set_num_threads(threads)
    try:
        again = make_problem(spec, torch.bfloat16, ROWS, 16)
        assert torch.equal(again.solve(make_backend("native", spec, torch.bfloat16), rope), expected)
    finally:
        torch.set_num_threads(1)


@NATIVE
@pytest.mark.parametrize("size", [8, 16, 50, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_compiled_norm_is_torchs(size: int, dtype: torch.dtype) -> None:
    assert LIBRARY is not None
    x, weight = torch.randn(5, size).to(dtype), torch.rand(size).to(dtype)
    expected = F.rms_norm(x.float(), (size,), weight.float(), 1e-6)
    answer = NativeRMSNorm(LIBRARY, dtype)(x, weight, 1e-6)
    torch.testing.assert_close(answer.float(), expected, atol=TOLERANCE[dtype], rtol=1e-2)
