"""Plans and results as MessagePack: columns of little-endian integers, a version in front, nothing executable.

Empty columns and a column of ones travel as nil, so that a steady decode plan for 256 sequences is under 1 KB.
"""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import msgpack
import numpy as np

from .plan import GREEDY, Ints, Logprobs, Registration, Sampling, StepPlan, StepResult

PLAN_VERSION = 2
RESULT_VERSION = 1
_EMPTY = np.empty(0, dtype=np.int32)


def encode_plan(plan: StepPlan) -> bytes:
    """The plan's wire form. Slots fit 16 bits; block ids and token ids take 32."""
    decode_only = len(plan.slots) > 0 and bool((plan.num_tokens == 1).all())
    return _pack(
        [
            PLAN_VERSION,
            plan.epoch,
            plan.step,
            plan.cohort,
            _column(plan.slots, "<u2"),
            None if decode_only else _column(plan.num_tokens),
            _column(plan.released, "<u2"),
            [_encode_registration(r) for r in plan.registrations] or None,
            _column(plan.block_slots, "<u2"),
            _column(plan.block_ids),
        ]
    )


def decode_plan(data: bytes) -> StepPlan:
    """The reverse of `encode_plan`. Raises ValueError for another version or damaged bytes."""
    fields = _unpack(data, PLAN_VERSION, 9)
    epoch, step, cohort, slots, counts, released, registrations, block_slots, block_ids = fields
    rows = _array(slots, "<u2")
    num_tokens = np.ones(len(rows), np.int32) if counts is None else _array(counts)
    return StepPlan(
        step=step,
        slots=rows,
        num_tokens=num_tokens,
        epoch=epoch,
        cohort=cohort,
        released=_array(released, "<u2"),
        registrations=[_decode_registration(r) for r in registrations or ()],
        block_slots=_array(block_slots, "<u2"),
        block_ids=_array(block_ids),
    )


def encode_result(result: StepResult) -> bytes:
    """The result's wire form."""
    return _pack(
        [
            RESULT_VERSION,
            result.epoch,
            result.step,
            _column(result.token_ids),
            [encode_logprobs(x) for x in result.logprobs] or None,
            [encode_logprobs(x) for x in result.prompt_logprobs] or None,
        ]
    )


def decode_result(data: bytes) -> StepResult:
    """The reverse of `encode_result`. Raises ValueError for another version or damaged bytes."""
    epoch, step, token_ids, logprobs, prompt_logprobs = _unpack(data, RESULT_VERSION, 5)
    return StepResult(
        step=step,
        token_ids=_array(token_ids),
        epoch=epoch,
        logprobs=[decode_logprobs(x) for x in logprobs or ()],
        prompt_logprobs=[decode_logprobs(x) for x in prompt_logprobs or ()],
    )


def encode_logprobs(x: Logprobs) -> list[Any]:
    """One row's log-probabilities as a list of plain values and column bytes."""
    top = x.top_ids.shape[1]
    columns = [_column(x.token_ids), _column(x.values, "<f4"), _column(x.ranks)]
    return [x.row, x.start, top, *columns, _column(x.top_ids), _column(x.top_values, "<f4")]


def decode_logprobs(fields: list[Any]) -> Logprobs:
    """The reverse of `encode_logprobs`."""
    row, start, top, token_ids, values, ranks, top_ids, top_values = fields
    ids = _array(token_ids)
    shape = (len(ids), top)
    return Logprobs(
        row=row,
        start=start,
        token_ids=ids,
        values=_floats(values),
        ranks=_array(ranks),
        top_ids=_array(top_ids).reshape(shape),
        top_values=_floats(top_values).reshape(shape),
    )


def _encode_registration(r: Registration) -> list[Any]:
    numbers = [r.slot, r.generation, r.num_computed_tokens, r.num_prompt_tokens]
    return [*numbers, _column(r.token_ids), encode_sampling(r.sampling)]


def _decode_registration(fields: list[Any]) -> Registration:
    slot, generation, num_computed, num_prompt, token_ids, sampling = fields
    return Registration(slot, generation, num_computed, num_prompt, _array(token_ids), decode_sampling(sampling))


def encode_sampling(sampling: Sampling) -> list[Any] | None:
    """Sampling settings as a list of plain values; nil is greedy."""
    return None if sampling == GREEDY else list(astuple(sampling))


def decode_sampling(fields: list[Any] | None) -> Sampling:
    """The reverse of `encode_sampling`. Raises ValueError for a grammar that is no text."""
    if fields is None:
        return GREEDY
    *plain, stop_token_ids, logit_bias, grammar = fields
    if not isinstance(grammar, str):
        raise ValueError(f"a grammar of type {type(grammar).__name__}")
    biases = tuple((int(token_id), float(bias)) for token_id, bias in logit_bias)
    values: list[Any] = [*plain, tuple(stop_token_ids), biases, grammar]
    return Sampling(*values)


def _column(values: Any, dtype: str = "<i4") -> bytes | None:
    return values.astype(dtype, copy=False).tobytes() if values.size else None


def _array(data: bytes | None, dtype: str = "<i4") -> Ints:
    return _EMPTY if data is None else np.frombuffer(data, dtype).astype(np.int32, copy=False)


def _floats(data: bytes | None) -> Any:
    return np.frombuffer(data or b"", "<f4")


def _pack(fields: list[Any]) -> bytes:
    return msgpack.packb(fields, use_bin_type=True)  # type: ignore[no-any-return]


def _unpack(data: bytes, version: int, num_fields: int) -> list[Any]:
    """The fields behind the version."""
    fields = msgpack.unpackb(data, raw=False, strict_map_key=False)
    if not isinstance(fields, list) or len(fields) != num_fields + 1 or fields[0] != version:
        found = fields[0] if isinstance(fields, list) and fields else type(fields).__name__
        raise ValueError(f"message version {found!r}, expected {version}")
    return fields[1:]
