"""Plans and results survive the wire; the mirror derives every shape from plans alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.scheduler.codec import decode_plan, decode_result, encode_plan, encode_result
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Ints, Logprobs, Registration, Sampling, StepPlan, StepResult, ints

columns = st.lists(st.integers(0, 65535), max_size=40).map(ints)
tokens = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=40).map(ints)
samplings = st.builds(
    Sampling,
    temperature=st.floats(0, 2),
    top_k=st.integers(0, 50),
    seed=st.integers(0, 2**63 - 1),
    stop_token_ids=st.lists(st.integers(0, 100), max_size=3).map(tuple),
    logit_bias=st.lists(st.tuples(st.integers(0, 100), st.floats(-9, 9)), max_size=3).map(tuple),
)
registrations = st.builds(
    Registration,
    slot=st.integers(0, 65535),
    generation=st.integers(0, 32767),
    num_computed_tokens=st.integers(0, 1000),
    num_prompt_tokens=st.integers(1, 1000),
    token_ids=tokens,
    sampling=samplings,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b) and a.dtype == b.dtype)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__slots__") and not isinstance(a, Sampling):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__slots__)
    return bool(a == b)


@given(
    slots=columns, registrations=st.lists(registrations, max_size=3), released=columns, blocks=tokens, data=st.data()
)
def test_a_plan_survives_the_wire(
    slots: Ints, registrations: list[Registration], released: Ints, blocks: Ints, data: st.DataObject
) -> None:
    counts = ints(data.draw(st.lists(st.integers(1, 9), min_size=len(slots), max_size=len(slots))))
    plan = StepPlan(7, slots, counts, 2, 1, released, registrations, ints(blocks % 65536), blocks)
    assert same(decode_plan(encode_plan(plan)), plan)


@given(ids=tokens, top=st.integers(0, 3))
def test_a_result_survives_the_wire(ids: Ints, top: int) -> None:
    k = len(ids)
    values = np.linspace(-3, 0, k, dtype=np.float32)
    wide = np.zeros((k, top), np.int32), np.zeros((k, top), np.float32)
    scored = Logprobs(1, 4, ids, values, ints(np.ones(k)), *wide)
    result = StepResult(3, ids, 1, [scored], [scored, scored])
    assert same(decode_result(encode_result(result)), result)


@pytest.mark.parametrize("data", [b"", b"\x91\x09", b"\xc1", encode_result(StepResult(0, ints([1])))])
def test_damaged_bytes_and_other_versions_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the errors of msgpack have many texts)
        decode_plan(data)


def prompt(slot: int, generation: int, length: int, computed: int = 0) -> Registration:
    return Registration(slot, generation, computed, length, ints(range(100, 100 + length)))


def test_a_chunked_prompt_samples_only_in_its_last_chunk_and_then_reads_the_future_map() -> None:
    mirror = Mirror(4, 8, block_size=4)
    plan = StepPlan(
        0, ints([2]), ints([3]), registrations=[prompt(2, 0, 6)], block_slots=ints([2, 2]), block_ids=ints([5, 3])
    )
    first = mirror.apply(plan)
    assert first.token_ids.tolist() == [100, 101, 102]
    assert first.cache_slots.tolist() == [20, 21, 22]
    assert len(first.sample_rows) == 0
    second = mirror.apply(StepPlan(1, ints([2]), ints([3])))
    assert second.cache_slots.tolist() == [23, 12, 13]
    assert second.sample_rows.tolist() == [0]
    decode = mirror.apply(StepPlan(2, ints([2]), ints([1])))
    assert (decode.token_ids.tolist(), decode.positions.tolist(), decode.seq_lens.tolist()) == ([~2], [6], [7])
    assert [(r.step, r.slots.tolist()) for r in decode.returns] == [(1, [2])]


def test_token_messages_are_received_up_to_the_newest_that_a_step_needs_and_only_once() -> None:
    mirror = Mirror(4, 8, block_size=4)
    for step in range(3):
        mirror.apply(
            StepPlan(step, ints([step]), ints([2]), registrations=[prompt(step, 0, 2)],
                     block_slots=ints([step]), block_ids=ints([step]))
        )  # fmt: skip
    needs_the_second = mirror.apply(StepPlan(3, ints([1]), ints([1])))
    assert [r.step for r in needs_the_second.returns] == [0, 1]
    needs_an_old_one = mirror.apply(StepPlan(4, ints([0]), ints([1])))
    assert needs_an_old_one.returns == []
    assert [r.step for r in mirror.apply(StepPlan(5, ints([2]), ints([1]))).returns] == [2]


def test_tokens_that_nobody_asks_for_are_received_before_too_many_are_under_way() -> None:
    most_unretired = 5
    mirror, received = Mirror(1, 8, 4, most_unretired), list[int]()
    most = 0
    for step in range(20):  # requests of one token, one after the other
        plan = StepPlan(
            step,
            ints([0]),
            ints([2]),
            released=ints([0] if step else []),
            registrations=[prompt(0, step, 2)],
            block_slots=ints([0]),
            block_ids=ints([0]),
        )
        due = [r.step for r in mirror.apply(plan).returns]
        received += due
        most = max(most, len(due))
    assert received == list(range(20 - most_unretired - 1))
    assert most == 1


def test_a_slot_is_registered_again_only_after_its_release() -> None:
    mirror = Mirror(2, 4, block_size=4)
    grant: dict[str, Any] = {"block_slots": ints([0]), "block_ids": ints([1])}
    mirror.apply(StepPlan(0, ints([0]), ints([2]), registrations=[prompt(0, 0, 2)], **grant))
    with pytest.raises(AssertionError, match="slot 0 registered while taken"):
        mirror.apply(StepPlan(1, ints([0]), ints([2]), registrations=[prompt(0, 1, 2)], **grant))
    mirror = Mirror(2, 4, block_size=4)
    mirror.apply(StepPlan(0, ints([0]), ints([2]), registrations=[prompt(0, 0, 2)], **grant))
    again = mirror.apply(
        StepPlan(1, ints([0]), ints([1]), released=ints([0]), registrations=[prompt(0, 1, 3)], **grant)
    )
    assert again.token_ids.tolist() == [100]


def test_plans_out_of_order_are_a_broken_invariant() -> None:
    with pytest.raises(AssertionError, match="plan 1 arrived, 0 was expected"):
        Mirror(2, 4, 4).apply(StepPlan(1, ints([0]), ints([1])))
