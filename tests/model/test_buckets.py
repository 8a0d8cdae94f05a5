"""Shapes of padded steps, and that padding changes nothing of what the step's own rows get."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from penstock.model.batch import Batch
from penstock.model.gpu.buckets import MAX_ROWS, MAX_TOKENS, Buckets, StepBuffers
from penstock.model.gpu.staging import Staging
from penstock.model.gpu.trial import step_of
from penstock.model.launch import StepLimits
from penstock.scheduler.mirror import StepInput

BLOCK_SIZE, SCRATCH = 16, 7


def limits(max_num_seqs: int = 600, max_num_batched_tokens: int = 2048) -> StepLimits:
    return StepLimits(max_num_seqs, max_num_batched_tokens, 512, BLOCK_SIZE, 64, torch.float32)


def inputs_of(counts: list[int]) -> StepInput:
    """A first step of sequences with so many tokens each."""
    return step_of(counts, counts, limits())


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
        total, shape = sum(counts), buckets.shape_of(Batch.from_step(inputs_of(counts)))
        sizes = decodes if total == len(counts) else mixed
        fitting = [size for size in sizes if size >= total]
        assert (shape and shape.num_tokens) == (min(fitting) if fitting else None)
        if shape is not None and len(counts) <= max_num_seqs:
            assert len(counts) + (not shape.all_decode) <= shape.num_rows, "padding tokens need a row of their own"


def arrived(counts: list[int]) -> Batch:
    """What a padded step's kernels read."""
    inputs, device = inputs_of(counts), torch.device("cpu")
    shape = Buckets(limits(), mixed=True).shape_of(Batch.from_step(inputs))
    assert shape is not None
    staging = Staging(1 << 14, device)
    buffers = StepBuffers(limits(), SCRATCH, staging, device)
    for _ in range(2):  # what the first leaves behind is nobody's
        staging.begin()
        buffers.put(inputs, shape)
        table = buffers.put_table(inputs, shape)
        staging.send()
    batch = Batch.from_step(inputs)
    batch.block_table = table
    buffers.load(torch.zeros(inputs.total_tokens, 64), batch)
    return buffers.batch(shape)


def test_padding_is_one_more_prompt_in_a_block_of_its_own() -> None:
    batch, plain = arrived([1, 30, 2]), Batch.from_step(inputs_of([1, 30, 2]))
    assert batch.num_tokens == 64
    assert batch.query_starts.tolist() == [0, 1, 31, 33] + [64] * (batch.num_rows - 3)
    assert batch.seq_lens.tolist() == [1, 30, 2, 31] + [0] * (batch.num_rows - 4)
    assert torch.equal(batch.positions[:33], plain.positions)
    assert torch.equal(batch.cache_slots[:33], plain.cache_slots)
    assert batch.cache_slots[33:].tolist() == [SCRATCH * BLOCK_SIZE] * 31
    assert torch.equal(batch.block_table[:3, :2], plain.block_table)
    assert set(batch.block_table[3:].flatten().tolist()) == {SCRATCH}
    assert batch.positions[33:].tolist() == [0] * 31


def test_a_step_that_fills_its_shape_has_no_padding_row() -> None:
    batch = arrived([1, 31])
    assert batch.seq_lens.tolist() == [1, 31] + [0] * (batch.num_rows - 2)
    assert set(batch.query_starts[2:].tolist()) == {32}


def test_padding_decodes_read_a_block_of_their_own() -> None:
    batch = arrived([1] * 9)
    assert (batch.num_rows, batch.all_decode) == (16, True)
    assert batch.query_starts.tolist() == list(range(17))
    assert batch.seq_lens.tolist() == [1] * 16
    assert set(batch.cache_slots[9:].tolist()) == {SCRATCH * BLOCK_SIZE}
    assert set(batch.block_table[9:].flatten().tolist()) == {SCRATCH}


def test_arrays_travel_together_and_arrive_as_they_were() -> None:
    staging = Staging(64, torch.device("cpu"))
    staging.begin()
    given: list[tuple[NDArray[Any], bool]] = [
        (np.arange(5), True),
        (np.empty(0, np.int64), True),
        (np.ones((3, 2), np.int32), False),
    ]
    places = [staging.put(values, wide) for values, wide in given]
    padded = staging.put(np.array([7, 8, 9]), False, 5, -1)
    staging.send()
    for place, (values, _) in zip(places, given, strict=True):
        assert place.tolist() == values.reshape(-1).tolist()
        assert place.data_ptr() % 16 == 0 or not len(place)
    assert padded.tolist() == [7, 8, 9, -1, -1]


def test_a_step_larger_than_the_room_is_told() -> None:
    staging = Staging(8, torch.device("cpu"))
    staging.begin()
    with pytest.raises(AssertionError, match="a step larger than the limits"):
        staging.put(np.arange(9), True)
