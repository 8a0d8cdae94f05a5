"""Attention of decodes, ours beside FlashAttention: `python tests/gpu/tune_attention.py OUT [even] [uneven]`.

Microseconds a layer; both include norm, rotation and the writing of the cache. Kernels are compiled by many processes
first.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.model.attention import AttentionSpec
from penstock.model.batch import Batch
from penstock.model.gpu.attention import find_flash_attention
from penstock.model.gpu.clock import timing_event
from penstock.model.gpu.decode_attention import Tiling, decode_attention
from penstock.model.gpu.fused import rotate_and_store
from penstock.model.kv_cache import KVCache
from penstock.model.rope import Rotation

HEADS, KV_HEADS, DIM, BLOCK, MAX_LEN = 32, 8, 128, 16, 4096
ROWS, LAYERS = (1, 8, 16, 32, 64, 128, 256, 512), 4
TILINGS = [
    Tiling(keys, stages, warps, least)
    for keys, stages, warps in itertools.product((32, 64), (2, 3), (2, 4))
    for least in (64, 512)
]
BYTES_PER_S = 4.3e12


class Problem:
    """A step of decodes over caches of several layers."""

    def __init__(self, rows: int, lengths: NDArray[np.int64]) -> None:
        width = MAX_LEN // BLOCK
        blocks = -(-lengths // BLOCK)
        rng = np.random.default_rng(0)
        ids, table = rng.permutation(int(blocks.sum())), np.zeros((rows, width), np.int32)
        for row, (first, count) in enumerate(zip(np.cumsum(blocks) - blocks, blocks, strict=True)):
            table[row, :count] = ids[first : first + count]
        last = lengths - 1
        slots = table[np.arange(rows), last // BLOCK].astype(np.int64) * BLOCK + last % BLOCK
        self.lengths = lengths
        cache = KVCache(LAYERS, int(blocks.sum()), BLOCK, KV_HEADS, DIM, torch.bfloat16, "cuda")
        cache._data.normal_()
        self.layers = [cache.layer(i) for i in range(LAYERS)]
        norm = [torch.rand(DIM, device="cuda", dtype=torch.bfloat16) + 0.5 for _ in range(2)]
        self.spec = AttentionSpec(HEADS, KV_HEADS, DIM, None, norm[0], norm[1], 1e-6)
        angles = torch.rand(rows, 1, DIM // 2, device="cuda") * 6
        self.rotation = Rotation(angles.cos(), angles.sin(), DIM, False)
        self.qkv = torch.randn(rows, (HEADS + 2 * KV_HEADS) * DIM, device="cuda", dtype=torch.bfloat16)
        given = (last, slots, np.arange(rows + 1), lengths, table)
        kinds = (torch.int64, torch.int64, torch.int32, torch.int32, torch.int32)
        tensors = [torch.from_numpy(each).cuda().to(kind) for each, kind in zip(given, kinds, strict=True)]
        self.batch = Batch(
            num_tokens=rows,
            num_rows=rows,
            max_query_len=1,
            max_seq_len=MAX_LEN,
            all_decode=True,
            token_ids=tensors[0],
            positions=tensors[0],
            cache_slots=tensors[1],
            query_starts=tensors[2],
            seq_lens=tensors[3],
            block_table=tensors[4],
            host_query_starts=np.arange(rows + 1, dtype=np.int32),
            host_seq_lens=lengths.astype(np.int32),
        )
        self.arrived = torch.zeros(1 << 14, dtype=torch.int32, device="cuda")

    def ours(self, layer: int, cuts: int, tiling: Tiling) -> Tensor:
        return decode_attention(
            self.qkv, self.rotation, self.spec, self.layers[layer], self.batch, self.arrived, cuts, tiling
        )

    def library(self, layer: int, splits: int) -> Tensor:
        kernel, batch, cache = find_flash_attention(), self.batch, self.layers[layer]
        assert kernel is not None
        queries = rotate_and_store(self.qkv, self.rotation, self.spec, cache, batch.cache_slots)
        out = kernel(
            queries,
            cache.keys,
            cache.values,
            max_seqlen_q=1,
            cu_seqlens_q=batch.query_starts,
            max_seqlen_k=MAX_LEN,
            seqused_k=batch.seq_lens,
            block_table=batch.block_table,
            softmax_scale=self.spec.scale,
            causal=True,
            num_splits=splits,
        )
        return out.view(len(self.qkv), -1)


def cuts_for(rows: int) -> list[int]:
    return [cuts for cuts in (1, 2, 4, 8, 16, 32) if cuts == 1 or rows * KV_HEADS * cuts <= 2100]


def compile_some(jobs: list[tuple[Tiling, int]]) -> None:
    problem = Problem(2, np.array([70, 300]))
    for tiling, cuts in jobs:
        try:
            problem.ours(0, cuts, tiling)
        except Exception as error:
            print(tiling, cuts, type(error).__name__, str(error)[:100], flush=True)
    torch.cuda.synchronize()


def time_us(work: partial[Tensor], repeats: int = 6) -> float:
    """Mean time of one layer, in a graph over several."""
    for layer in range(LAYERS):
        work(layer)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for layer in list(range(LAYERS)) * 3:
            work(layer)
    graph.replay()
    start, end = timing_event(), timing_event()
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e3 / (3 * repeats * LAYERS)


def tune(rows: int, lengths: NDArray[np.int64], what: str, out: Path) -> None:
    problem = Problem(rows, lengths)
    library = {splits: round(time_us(partial(problem.library, splits=splits)), 1) for splits in (0, 1)}
    exact = problem.library(0, 1).float()
    found = []
    for tiling, cuts in itertools.product(TILINGS, cuts_for(rows)):
        try:
            off = float((problem.ours(0, cuts, tiling).float() - exact).norm() / exact.norm())
            us = time_us(partial(problem.ours, cuts=cuts, tiling=tiling), 3)
        except Exception as error:
            print("no", tiling, cuts, type(error).__name__, flush=True)
            continue
        if off > 0.01:
            print("WRONG", rows, tiling, cuts, off, flush=True)
            continue
        found.append((round(us, 1), cuts, tiling.keys, tiling.stages, tiling.warps, tiling.least))
    found.sort()
    floor = int(lengths.sum()) * 2 * KV_HEADS * DIM * 2 / BYTES_PER_S * 1e6
    with out.open("a") as file:
        file.write(json.dumps({"rows": rows, "lengths": what, "library": library, "found": found}) + "\n")
    print(f"{rows} rows of {what}: library {library}, floor {floor:.1f}; cuts, keys, stages, warps, least: {found[:6]}")


def main() -> None:
    out = Path(sys.argv[1]) / "attention.jsonl"
    jobs = list(itertools.product(TILINGS, (1, 2, 4, 8, 16, 32)))
    with multiprocessing.get_context("spawn").Pool(14) as pool:
        pool.map(compile_some, [jobs[i::14] for i in range(14)])
    rng, asked = np.random.default_rng(0), sys.argv[2:]
    for rows in ROWS if "even" in asked or not asked else ():
        tune(rows, np.full(rows, 400), "400", out)
        tune(rows, np.full(rows, 3000), "3000", out)
    for rows in (32, 64, 128, 256) if "uneven" in asked or not asked else ():
        tune(rows, rng.integers(50, 900, rows), "50 to 900", out)
        tune(rows, (rng.lognormal(5.2, 1, rows) + 600).clip(max=4000).astype(np.int64), "a chat's end", out)


if __name__ == "__main__":
    main()
