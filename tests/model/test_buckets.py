"""Shapes of padded steps, and that padding changes nothing of what the step's own rows get."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.model.batch import Batch
from penstock.model.decoder import StageModule
from penstock.model.exchange import Exchange
from penstock.model.gpu.buckets import MAX_ROWS, MAX_TOKENS, Buckets, PaddedShape
from penstock.model.gpu.columns import Columns, Staging
from penstock.model.gpu.step_buffers import StepBuffers
from penstock.model.gpu.trial import step_of
from penstock.model.limits import StepLimits
from penstock.model.work import StepWork
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import Registration, StepPlan, ints

from .torch_ends import TorchEnds

BLOCK_SIZE, SCRATCH = 16, 7


class OneStage:
    """What buffers ask of a module."""

    embed_tokens = lm_head = object()


class FirstStage(OneStage):
    lm_head = None


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
        total, shape = sum(counts), buckets.shape_of(inputs_of(counts))
        sizes = decodes if total == len(counts) else mixed
        fitting = [size for size in sizes if size >= total]
        assert (shape and shape.num_tokens) == (min(fitting) if fitting else None)
        if shape is not None and len(counts) <= max_num_seqs:
            assert len(counts) + (not shape.all_decode) <= shape.num_rows, "padding tokens need a row of their own"


def arrived(counts: list[int]) -> Batch:
    """What a padded step's kernels read."""
    inputs, device = inputs_of(counts), torch.device("cpu")
    shape = Buckets(limits(), mixed=True).shape_of(inputs)
    assert shape is not None
    exchange = Exchange.of(limits(), device, first=True, last=True)
    buffers = StepBuffers(cast(StageModule, OneStage), limits(), SCRATCH, exchange, device)
    for _ in range(2):  # what the first leaves behind is nobody's
        buffers.put(StepWork(inputs), shape)
        ends = TorchEnds(buffers.places(padded=True), BLOCK_SIZE, embeds=True, takes_tokens=False)
        ends.take_in()
        ends.gather(shape.num_rows, shape.num_tokens)
    return buffers.batch(shape)


def test_padding_is_one_more_prompt_in_a_block_of_its_own() -> None:
    batch, plain = arrived([1, 30, 2]), Batch.from_step(inputs_of([1, 30, 2]))
    assert batch.num_tokens == 64
    assert batch.query_starts.tolist() == [0, 1, 31, 33] + [64] * (batch.num_rows - 3)
    assert torch.equal(batch.token_ids[:33], plain.token_ids)
    assert batch.seq_lens.tolist() == [1, 30, 2, 31] + [0] * (batch.num_rows - 4)
    assert torch.equal(batch.positions[:33], plain.positions)
    assert torch.equal(batch.cache_slots[:33], plain.cache_slots)
    assert batch.cache_slots[33:].tolist() == [SCRATCH * BLOCK_SIZE] * 31
    for row, used in enumerate((1, 2, 1)):
        assert torch.equal(batch.block_table[row, :used], plain.block_table[row, :used])
    assert set(batch.block_table[3:].flatten().tolist()) == {SCRATCH}
    assert batch.positions[33:].tolist() == [0] * 31


def test_a_step_that_fills_its_shape_has_no_padding_row() -> None:
    batch = arrived([1, 31])
    assert batch.seq_lens.tolist() == [1, 31] + [0] * (batch.num_rows - 2)
    assert set(batch.query_starts[2:].tolist()) == {32}


def test_steady_decodes_arrive_as_those_whose_columns_are_put() -> None:
    mirror, device = Mirror(9, 6, BLOCK_SIZE), torch.device("cpu")
    prompts = [Registration(slot, 0, 0, 15, ints(range(15))) for slot in range(9)]
    blocks = ints([slot for slot in range(9) for _ in range(2)])
    first = StepPlan(0, ints(range(9)), ints([15] * 9), registrations=prompts, block_slots=blocks, block_ids=blocks + 3)
    mirror.apply(first)
    exchange = Exchange.of(limits(), device, first=True, last=True)
    assert exchange.future_map is not None
    exchange.future_map.tokens[:] = torch.arange(len(exchange.future_map.tokens)) + 70
    shape, found = PaddedShape(16, 16, all_decode=True), []
    for step, slots in enumerate((ints([7, 2, 5]), ints([7, 2, 5]), ints([8, 1])), start=1):
        inputs = mirror.apply(StepPlan(step, slots, ints([1] * len(slots))))
        assert inputs.is_steady
        batches = []
        for is_steady in (True, False):
            buffers = StepBuffers(cast(StageModule, OneStage), limits(), SCRATCH, exchange, device)
            buffers._tables[:9, :6] = torch.from_numpy(mirror.block_table)
            buffers.put(StepWork(replace(inputs, is_steady=is_steady)), shape)
            TorchEnds(buffers.places(padded=True), BLOCK_SIZE, embeds=True, takes_tokens=False).gather(16, 16)
            batches.append(buffers.batch(shape))
            found.append(buffers.sample_offsets(len(slots)).tolist())
        derived, put = batches
        for name in ("token_ids", "positions", "cache_slots", "seq_lens", "block_table", "query_starts"):
            assert torch.equal(getattr(derived, name), getattr(put, name)), name
        assert derived.token_ids[: len(slots)].tolist() == (slots + 70).tolist()
    assert found == [[0, 1, 2]] * 4 + [[0, 1]] * 2


@pytest.mark.parametrize("shape", [PaddedShape(16, 16, all_decode=True), PaddedShape(64, 65, all_decode=False)])
def test_a_cleared_step_is_padding_throughout(shape: PaddedShape) -> None:
    device = torch.device("cpu")
    exchange = Exchange.of(limits(), device, first=True, last=True)
    buffers = StepBuffers(cast(StageModule, OneStage), limits(), SCRATCH, exchange, device)
    buffers.clear(shape)
    TorchEnds(buffers.places(padded=True), BLOCK_SIZE, embeds=True, takes_tokens=False).gather(
        shape.num_rows, shape.num_tokens
    )
    batch = buffers.batch(shape)
    assert set(batch.positions.tolist()) == {0}
    assert set(batch.cache_slots.tolist()) == {SCRATCH * BLOCK_SIZE}
    assert batch.query_starts[-1] == shape.num_tokens


def test_padding_decodes_read_a_block_of_their_own() -> None:
    batch = arrived([1] * 9)
    assert (batch.num_rows, batch.all_decode) == (16, True)
    assert batch.query_starts.tolist() == list(range(17))
    assert batch.seq_lens.tolist() == [1] * 16
    assert set(batch.cache_slots[9:].tolist()) == {SCRATCH * BLOCK_SIZE}
    assert set(batch.block_table[9:].flatten().tolist()) == {SCRATCH}


@pytest.mark.parametrize("padded", [False, True])
def test_columns_travel_together_and_arrive_as_they_were(padded: bool) -> None:
    staging = Staging(limits(9, 700), 10, 512, 3, torch.device("cpu"))
    there = staging.padded if padded else staging.whole
    for turn in range(3):
        columns = staging.begin(padded)
        for number, field in enumerate(fields(Columns)):
            column: NDArray[Any] = getattr(columns, field.name)
            column[:] = np.arange(len(column)) + 1000 * number + turn
        staging.send(padded, len(columns.changes))
    for number, field in enumerate(fields(Columns)):
        column_there: Tensor = getattr(there, field.name)
        assert torch.equal(column_there.long(), torch.arange(len(column_there)) + 1000 * number + 2)
        assert column_there.data_ptr() % 16 == 0


def test_columns_by_row_lie_at_the_same_place_in_both_layouts() -> None:
    staging = Staging(limits(9, 700), 10, 512, 3, torch.device("cpu"))
    for name in ("header", "slots", "seq_lens", "query_starts", "sample_offsets", "sample_slots"):
        assert getattr(staging.padded, name).data_ptr() == getattr(staging.whole, name).data_ptr()
    assert (len(staging.padded.token_ids), len(staging.whole.token_ids)) == (512, 700)


def test_of_two_tokens_that_returned_for_a_slot_the_newer_counts() -> None:
    device = torch.device("cpu")
    exchange = Exchange.of(limits(), device, first=True, last=False)
    assert exchange.returned is not None
    assert exchange.future_map is not None
    buffers = StepBuffers(cast(StageModule, FirstStage), limits(), SCRATCH, exchange, device)
    work = StepWork(inputs_of([1, 1]))
    for slots, tokens in (([3, 5, 9], [30, 50, 90]), ([5, 2], [51, 20]), ([3], [32])):
        place, _ = exchange.returned.take(len(slots))
        place.buffer.copy_(torch.tensor(tokens))
        work.returned.append((ints(slots), place))
    buffers.put(work, Buckets(limits(), mixed=True).shape_of(work.inputs))
    TorchEnds(buffers.places(padded=True), BLOCK_SIZE, embeds=True, takes_tokens=True).take_in()
    assert exchange.future_map.tokens[[2, 3, 5, 9]].tolist() == [20, 32, 51, 90]
