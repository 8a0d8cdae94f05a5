"""Shapes of padded steps, and that padding changes nothing of what the step's own rows get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.configs.model_config import read_model_config
from penstock.model.batch import Batch
from penstock.model.decoder import build_stage_module
from penstock.model.gpu.buckets import MAX_ROWS, MAX_TOKENS, Buckets, pad
from penstock.model.gpu.eager import EagerLauncher
from penstock.model.kv_cache import KVCache
from penstock.model.launch import DirectLauncher, StepLimits
from penstock.model.loader import dummy_weights
from penstock.model.tensor_parallel import NoTensorParallel
from penstock.model.work import StepWork
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import Registration, StepPlan, ints

from .tiny import write_tiny_model

BLOCK_SIZE, NUM_BLOCKS = 16, 40


def limits(max_num_seqs: int = 600, max_num_batched_tokens: int = 2048, hidden_size: int = 64) -> StepLimits:
    return StepLimits(max_num_seqs, max_num_batched_tokens, 256, BLOCK_SIZE, hidden_size, torch.float32)


def step_of(counts: list[int]) -> Batch:
    """A first step of sequences with so many tokens each."""
    return Batch.from_step(inputs_of(Mirror(len(counts), 40, BLOCK_SIZE), counts))


def inputs_of(mirror: Mirror, counts: list[int], step: int = 0) -> StepInput:
    rng = np.random.default_rng(step)
    new = [] if step else [Registration(s, 0, 0, n, ints(rng.integers(3, 60, n + 9))) for s, n in enumerate(counts)]
    blocks = [-(-(int(mirror.num_computed[s]) + n) // BLOCK_SIZE) for s, n in enumerate(counts)]
    missing = [s for s, n in enumerate(blocks) for _ in range(n - (int(mirror.num_blocks[s]) if step else 0))]
    first = int(mirror.num_blocks.sum()) if step else 0
    plan = StepPlan(
        step,
        ints(range(len(counts))),
        ints(counts),
        registrations=new,
        block_slots=ints(missing),
        block_ids=ints(range(first, first + len(missing))),
    )
    return mirror.apply(plan)


@pytest.mark.parametrize("max_num_seqs", [1, 3, 8, 200, 600])
@pytest.mark.parametrize("max_num_batched_tokens", [8, 100, 4096])
def test_every_small_step_has_the_next_larger_shape(max_num_seqs: int, max_num_batched_tokens: int) -> None:
    buckets = Buckets(limits(max_num_seqs, max_num_batched_tokens), mixed=True)
    shapes = buckets.shapes()
    assert len(shapes) == len(set(shapes))
    decodes = [shape.num_tokens for shape in shapes if shape.all_decode]
    mixed = [shape.num_tokens for shape in shapes if not shape.all_decode]
    assert max(decodes) == min(max_num_seqs, MAX_ROWS)
    assert max(mixed, default=0) <= min(max_num_batched_tokens, MAX_TOKENS)
    for counts in ([1] * max_num_seqs, [1], [2], [1] * (max_num_seqs - 1) + [5], [40, 60], [300, 211], [300, 213]):
        total, shape = sum(counts), buckets.shape_of(step_of(counts))
        sizes = decodes if total == len(counts) else mixed
        fitting = [size for size in sizes if size >= total]
        assert (shape and shape.num_tokens) == (min(fitting) if fitting else None)
        if shape is not None and len(counts) <= max_num_seqs:
            assert len(counts) + (not shape.all_decode) <= shape.num_rows, "padding tokens need a row of their own"


def test_padding_is_one_more_prompt_in_a_block_of_its_own() -> None:
    batch = step_of([1, 30, 2])
    shape = Buckets(limits(), mixed=True).shape_of(batch)
    assert shape is not None
    assert shape.num_tokens == 64
    pad(batch, shape, scratch_block=7, block_size=BLOCK_SIZE)
    assert batch.query_starts.tolist() == [0, 1, 31, 33] + [64] * (shape.num_rows - 3)
    assert batch.seq_lens.tolist() == [1, 30, 2, 31] + [0] * (shape.num_rows - 4)
    assert batch.cache_slots[33:].tolist() == [7 * BLOCK_SIZE] * 31
    assert batch.block_table[3:].unique().tolist() == [7]
    assert batch.positions[33:].tolist() == [0] * 31


def test_a_step_that_fills_its_shape_has_no_padding_row() -> None:
    batch = step_of([1, 31])
    shape = Buckets(limits(), mixed=True).shape_of(batch)
    assert shape is not None
    pad(batch, shape, scratch_block=7, block_size=BLOCK_SIZE)
    assert batch.seq_lens.tolist() == [1, 31] + [0] * (shape.num_rows - 2)
    assert batch.query_starts[2:].unique().tolist() == [32]


def test_padded_decodes_get_the_same_hidden_states(tmp_path: Path) -> None:
    write_tiny_model(tmp_path, "qwen3")
    config = read_model_config(tmp_path)
    module = build_stage_module(
        config,
        range(config.num_hidden_layers),
        NoTensorParallel(),
        dtype=torch.float32,
        device="cpu",
        first=True,
        last=True,
    )
    dummy_weights(module, config, 0)
    shape = limits(max_num_seqs=16, hidden_size=config.hidden_size)

    def run(padded: bool) -> list[torch.Tensor]:
        module.bind_cache(
            KVCache(
                config.num_hidden_layers,
                NUM_BLOCKS + 1,
                BLOCK_SIZE,
                config.num_key_value_heads,
                config.head_dim,
                torch.float32,
            )
        )
        launcher = EagerLauncher(module, torch.device("cpu"), shape, NUM_BLOCKS) if padded else DirectLauncher(module)
        mirror, out = Mirror(16, 16, BLOCK_SIZE), []
        for step, counts in enumerate([[17, 5, 9, 3, 30], [1] * 5, [1] * 5]):
            inputs = inputs_of(mirror, counts, step)
            work = StepWork(inputs, Batch.from_step(inputs))
            launcher.upload(work)
            out.append(launcher.forward(module.embed(work.batch.token_ids), work.batch).clone())
        return out

    for ours, plain in zip(run(True), run(False), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
