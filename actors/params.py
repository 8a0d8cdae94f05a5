"""A request as the engine takes it, from what a user says: everything resolved against the model's limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from ..configs.sampling import SamplingParams
from ..errors import RequestError
from ..scheduler.messages import NewRequest
from ..scheduler.plan import Sampling, ints
from .prompts import Limits


def to_new_request(
    request_id: str,
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    index: int = 0,
    *,
    eos_token_ids: Sequence[int],
    limits: Limits,
) -> NewRequest:
    """One of the `n` sequences of a request, the index-th.

    A seeded request's sequences draw from seed, seed + 1, ...; an unseeded one's from a seed made up here, so that
    nothing behind this point is left to chance. Raises RequestError where the limits can't hold the request; the
    prompt itself is checked by `prompts.check_prompt`.
    """
    _check_bias(params, limits.vocab_size)
    seed = secrets.randbits(63) if params.seed is None else _signed(params.seed + index)
    return NewRequest(
        request_id=request_id,
        prompt_token_ids=ints(prompt_token_ids),
        max_tokens=_max_tokens(params, limits.room(len(prompt_token_ids))),
        sampling=to_sampling(params, seed, eos_token_ids),
        stop_token_ids=tuple(params.stop_token_ids or ()),
        eos_token_ids=tuple(eos_token_ids),
        ignore_eos=params.ignore_eos,
    )


def to_sampling(params: SamplingParams, seed: int, eos_token_ids: Sequence[int]) -> Sampling:
    """The sampler's part of the params. A greedy request brings no seed and no truncation: equal ones look equal."""
    forbidden = {*eos_token_ids, *(params.stop_token_ids or ())} if params.min_tokens else set()
    random = params.temperature > 0
    return Sampling(
        temperature=params.temperature,
        top_k=max(params.top_k, 0) if random else 0,
        top_p=params.top_p if random else 1.0,
        min_p=params.min_p if random else 0.0,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=seed if random else 0,
        num_logprobs=-1 if params.logprobs is None else params.logprobs,
        num_prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
        min_tokens=params.min_tokens,
        stop_token_ids=tuple(sorted(forbidden)),
        logit_bias=tuple(sorted((params.logit_bias or {}).items())),
        grammar=params.structured_outputs.spec if params.structured_outputs else "",
    )


def _max_tokens(params: SamplingParams, room: int) -> int:
    """As asked for, or else all that can follow the prompt."""
    if params.max_tokens is not None:
        return params.max_tokens
    if params.min_tokens > room:
        problem = f"min_tokens is {params.min_tokens}, but behind the prompt is room for {room} tokens only"
        raise RequestError(problem, "min_tokens")
    return room


def _check_bias(params: SamplingParams, vocab_size: int) -> None:
    largest = max(params.logit_bias or {0: 0.0})
    if largest >= vocab_size:
        problem = f"logit_bias names the token id {largest}; ids go from 0 to {vocab_size - 1}"
        raise RequestError(problem, "logit_bias")


def _signed(seed: int) -> int:
    """The seed as 64 bits hold it."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)
