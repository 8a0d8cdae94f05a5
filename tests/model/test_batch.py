"""A step's tensors say what the mirror says."""

from __future__ import annotations

import pytest
import torch

from penstock.errors import ConfigError
from penstock.model.batch import Batch
from penstock.model.kv_cache import KVCache, bytes_per_block
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Registration, StepPlan, ints


def test_a_batch_holds_the_steps_arrays_in_the_layers_types() -> None:
    mirror = Mirror(num_slots=4, max_blocks_per_seq=4, block_size=4)
    plan = StepPlan(
        step=0,
        slots=ints([2, 0]),
        num_tokens=ints([5, 1]),
        registrations=[Registration(2, 0, 0, 9, ints(range(9))), Registration(0, 0, 0, 1, ints([7]))],
        block_slots=ints([2, 2, 0]),
        block_ids=ints([6, 3, 1]),
    )
    batch = Batch.from_step(mirror.apply(plan))
    assert (batch.num_tokens, batch.num_rows, batch.max_seq_len, batch.all_decode) == (6, 2, 5, False)
    assert batch.token_ids.tolist() == [0, 1, 2, 3, 4, 7]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0]
    assert batch.cache_slots.tolist() == [24, 25, 26, 27, 12, 4]
    assert batch.query_starts.tolist() == [0, 5, 6]
    assert batch.seq_lens.tolist() == [5, 1]
    assert batch.block_table.tolist() == [[6, 3], [1, 0]]
    assert {t.dtype for t in (batch.token_ids, batch.positions, batch.cache_slots)} == {torch.int64}
    assert {t.dtype for t in (batch.query_starts, batch.seq_lens, batch.block_table)} == {torch.int32}
    decode = Batch.from_step(mirror.apply(StepPlan(step=1, slots=ints([0]), num_tokens=ints([1]))))
    assert decode.all_decode
    assert decode.token_ids.tolist() == [-1]


def test_a_layers_cache_is_addressed_by_block_and_by_slot_alike() -> None:
    cache = KVCache(2, 5, 4, 3, 8, torch.bfloat16)
    layer = cache.layer(1)
    layer.flat_values[2 * 4 + 3] = 1
    assert layer.values[2, 3].eq(1).all()
    assert layer.keys.eq(0).all()
    assert cache.layer(0).values.eq(0).all()
    assert bytes_per_block(2, 4, 3, 8, torch.bfloat16) * 5 == 2 * 2 * layer.keys.numel() * 2


def test_a_cache_beyond_all_memory_is_refused_with_its_size() -> None:
    with pytest.raises(ConfigError, match=r"1073741824 blocks of KV cache take 2097152\.0 GiB .* lower num_kv_blocks"):
        KVCache(32, 1 << 30, 16, 8, 128, torch.bfloat16)
