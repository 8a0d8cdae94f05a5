"""Shapes of padded steps, and that padding changes nothing of what the step's own rows get."""

from __future__ import annotations

import pytest
import torch

from penstock.model.batch import Batch
from penstock.model.gpu.buckets import MAX_ROWS, MAX_TOKENS, Buckets, pad
from penstock.model.launch import StepLimits
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Registration, StepPlan, ints

BLOCK_SIZE = 16


def limits(max_num_seqs: int = 600, max_num_batched_tokens: int = 2048) -> StepLimits:
    return StepLimits(max_num_seqs, max_num_batched_tokens, 512, BLOCK_SIZE, 64, torch.float32)


def step_of(counts: list[int]) -> Batch:
    """A first step of sequences with so many tokens each."""
    new = [Registration(row, 0, 0, count, ints([7] * count)) for row, count in enumerate(counts)]
    blocks = [row for row, count in enumerate(counts) for _ in range(-(-count // BLOCK_SIZE))]
    rows = list(range(len(counts)))
    ids = ints(list(range(len(blocks))))
    plan = StepPlan(0, ints(rows), ints(counts), registrations=new, block_slots=ints(blocks), block_ids=ids)
    return Batch.from_step(Mirror(len(counts), 40, BLOCK_SIZE).apply(plan))


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
    assert set(batch.block_table[3:].flatten().tolist()) == {7}
    assert batch.positions[33:].tolist() == [0] * 31


def test_a_step_that_fills_its_shape_has_no_padding_row() -> None:
    batch = step_of([1, 31])
    shape = Buckets(limits(), mixed=True).shape_of(batch)
    assert shape is not None
    pad(batch, shape, scratch_block=7, block_size=BLOCK_SIZE)
    assert batch.seq_lens.tolist() == [1, 31] + [0] * (shape.num_rows - 2)
    assert set(batch.query_starts[2:].tolist()) == {32}
