"""SamplingParams: vLLM's names and defaults; a wrong value is refused with its name, itself and the limit."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.configs.sampling import RequestOutputKind, SamplingParams
from penstock.errors import RequestError


def test_the_defaults_are_vllms() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.top_p, params.top_k, params.min_p) == (1, 1.0, 1.0, 0, 0.0)
    assert (params.max_tokens, params.min_tokens, params.repetition_penalty, params.seed) == (16, 0, 1.0, None)
    assert (params.detokenize, params.skip_special_tokens, params.output_kind) == (True, True, "cumulative")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: .*greater than or equal to 1"),
        ({"max_tokens": -3}, "max_tokens is -3: .*greater than or equal to 1"),
        ({"temperature": -0.5}, "temperature is -0.5: .*greater than or equal to 0"),
        ({"temperature": float("nan")}, "temperature is nan: .*finite"),
        ({"top_p": 0}, "top_p is 0: .*greater than 0"),
        ({"top_p": 1.5}, "top_p is 1.5: .*less than or equal to 1"),
        ({"top_k": -2}, "top_k is -2: .*greater than or equal to -1"),
        ({"min_p": 2}, "min_p is 2: .*less than or equal to 1"),
        ({"n": 0}, "n is 0: .*greater than or equal to 1"),
        ({"logprobs": 21}, "logprobs is 21: .*less than or equal to 20"),
        ({"prompt_logprobs": -1}, "prompt_logprobs is -1: .*greater than or equal to 0"),
        ({"seed": 1 << 63}, "seed is 9223372036854775808: .*less than 9223372036854775808"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0: .*greater than 0"),
        ({"presence_penalty": 3}, "presence_penalty is 3: .*less than or equal to 2"),
        ({"min_tokens": 17}, "min_tokens 17 is above max_tokens 16"),
        ({"stop": ["a", ""]}, "stop is .*must not be empty"),
        ({"stop": "a", "detokenize": False}, "stop is 'a', but stop strings need detokenize=True"),
        ({"stop_token_ids": [4, -1]}, "stop_token_ids is .*token id -1 is below 0"),
        ({"stop_token_ids": [4, 1 << 31]}, "stop_token_ids is .*token id 2147483648 is above 2147483647"),
        ({"logit_bias": {1 << 63: 1}}, "logit_bias is .*token id 9223372036854775808 is above 2147483647"),
        ({"max_tokens": 1 << 63}, "max_tokens is 9223372036854775808: .*less than 9223372036854775808"),
        ({"min_tokens": 1 << 70, "max_tokens": None}, "min_tokens is 1180591620717411303424: .*less than"),
        ({"top_k": 1 << 63}, "top_k is 9223372036854775808: .*less than 9223372036854775808"),
        ({"logit_bias": {3: 101}}, "logit_bias is .*bias 101.0 of token 3 is not within -100 to 100"),
        ({"temprature": 0}, "unknown sampling parameter 'temprature'; did you mean 'temperature'"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_its_limit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**values)
    with pytest.raises(RequestError, match=message):
        SamplingParams.from_any(values)


def test_every_wrong_value_is_named() -> None:
    with pytest.raises(RequestError, match=r"n is 0.*; top_p is 0"):
        SamplingParams(n=0, top_p=0)


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 0), ("min_tokens", 17), ("nn", 1)])
def test_a_refused_assignment_leaves_the_params_as_they_were(name: str, value: int) -> None:
    params = SamplingParams()
    with pytest.raises(RequestError, match=name):
        setattr(params, name, value)
    assert params == SamplingParams()


def test_params_come_from_params_mappings_or_nothing() -> None:
    params = SamplingParams(top_k=-1, seed=-1, output_kind="delta")
    assert (params.seed, params.output_kind) == (None, RequestOutputKind.DELTA)
    assert SamplingParams.from_any(params) is params
    assert SamplingParams.from_any({"n": 2}).n == 2
    assert SamplingParams.from_any(None) == SamplingParams()
    with pytest.raises(RequestError, match="are a int"):
        SamplingParams.from_any(3)  # type: ignore[arg-type]


def test_stop_strings_are_a_list_however_they_came() -> None:
    assert SamplingParams(stop="a").stop_strings == ["a"]
    assert SamplingParams(stop=["a", "b"]).stop_strings == ["a", "b"]
    assert SamplingParams().stop_strings == []
