"""A request for the engine from what a user says."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.actors.params import to_new_request
from penstock.actors.prompts import Limits
from penstock.configs.sampling import SamplingParams
from penstock.errors import RequestError
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import GREEDY, Sampling

LIMITS = Limits(vocab_size=100, max_model_len=32, cache_tokens=64)


def request(params: SamplingParams, index: int = 0, limits: Limits = LIMITS) -> NewRequest:
    return to_new_request("a", (1, 2, 3), params, index, eos_token_ids=(0, 7), limits=limits)


def test_everything_a_user_says_arrives() -> None:
    params = SamplingParams(
        temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, seed=3, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logprobs=2, prompt_logprobs=0, min_tokens=4, max_tokens=9, stop_token_ids=[9, 8],
        ignore_eos=True, logit_bias={5: 1.0, 2: -1.0},
    )  # fmt: skip
    found = request(params)
    assert found.prompt_token_ids.tolist() == [1, 2, 3]
    assert (found.request_id, found.max_tokens, found.ignore_eos) == ("a", 9, True)
    assert (found.stop_token_ids, found.eos_token_ids) == ((9, 8), (0, 7))
    assert found.sampling == Sampling(
        temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, seed=3, num_logprobs=2, num_prompt_logprobs=0, min_tokens=4,
        stop_token_ids=(0, 7, 8, 9), logit_bias=((2, -1.0), (5, 1.0)),
    )  # fmt: skip


def test_a_greedy_request_is_the_greedy_sampling() -> None:
    assert request(SamplingParams(temperature=0, top_p=0.5, top_k=3, seed=4)).sampling == GREEDY


@pytest.mark.parametrize(("seed", "index", "expected"), [(5, 2, 7), ((1 << 63) - 1, 1, -(1 << 63))])
def test_seeded_completions_draw_from_successive_seeds(seed: int, index: int, expected: int) -> None:
    assert request(SamplingParams(seed=seed), index).sampling.seed == expected


def test_unseeded_completions_draw_from_seeds_of_their_own() -> None:
    assert len({request(SamplingParams(n=8), index).sampling.seed for index in range(8)}) == 8


@pytest.mark.parametrize(("cache_tokens", "expected"), [(64, 29), (16, 13)])
def test_without_max_tokens_the_model_and_the_cache_limit(cache_tokens: int, expected: int) -> None:
    limits = Limits(vocab_size=100, max_model_len=32, cache_tokens=cache_tokens)
    assert request(SamplingParams(max_tokens=None), limits=limits).max_tokens == expected


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": None, "min_tokens": 30}, "min_tokens is 30, but behind the prompt is room for 29 tokens only"),
        ({"logit_bias": {100: 1.0}}, "logit_bias names the token id 100; ids go from 0 to 99"),
    ],
    ids=str,
)
def test_what_the_limits_cannot_hold_is_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request(SamplingParams(**params))
