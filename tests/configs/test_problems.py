"""A hint is the name that was meant, or there is none; a value is told what it lacks of what it comes nearest to."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.configs.engine import EngineConfig
from penstock.configs.problems import explain, unknown_name
from penstock.configs.sampling import SamplingParams

KNOWN = [*EngineConfig.model_fields, *SamplingParams.model_fields]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("temprature", "temperature"),
        ("Top-P", "top_p"),
        ("max_new_tokens", "max_tokens"),
        ("tensor_parallel", "tensor_parallel_size"),
        ("gpu_memory", "gpu_memory_utilization"),
        ("guided_json", "structured_outputs"),
        ("guided_decoding", "structured_outputs"),
    ],
)
def test_a_name_that_is_nearly_one_gets_it_as_a_hint(name: str, meant: str) -> None:
    assert unknown_name(name, KNOWN).endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize(
    "name", ["best", "best_of", "reasoning_effort", "quantization", "swap_space", "length_penalty"]
)
def test_a_name_that_shares_a_few_letters_gets_none(name: str) -> None:
    assert "did you mean" not in unknown_name(name, KNOWN)


class Part(BaseModel):
    """A piece."""

    kind: Literal["text"]


class Message(BaseModel):
    """Some fields may be one thing or another."""

    model_config = ConfigDict(extra="forbid", strict=True)

    content: str | list[Part] = ""
    choice: Literal["none", "auto"] | Part = "none"
    ids: str | list[str] | list[list[int]] = ""
    tags: dict[str, str] = {}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"content": 5}, "content is 5: input should be a valid string, or a valid list"),
        ({"content": [{}]}, "content.0.kind is missing"),
        ({"content": [{"kind": "a"}]}, "content.0.kind is 'a': input should be 'text'"),
        ({"choice": "often"}, "choice is 'often': input should be 'none' or 'auto'"),
        ({"choice": {}}, "choice.kind is missing"),
        ({"ids": [["a"]]}, "ids.0.0 is 'a': input should be a valid integer"),
        ({"tags": {"Part": 5}}, "tags.Part is 5: input should be a valid string"),
        ({"Part": 5}, "unknown setting 'Part'; known are: choice, content, ids, tags"),
        ({"str": 5}, "unknown setting 'str'; known are: choice, content, ids, tags"),
        (
            {"ids": 5, "choice": 6},
            "choice is 6: input should be 'none' or 'auto'; ids is 5: input should be a valid string, or a valid list",
        ),
    ],
)
def test_what_may_be_one_thing_or_another_is_told_what_it_lacks_of_the_nearest(body: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Message.model_validate(body)
    assert explain(caught.value, Message.model_fields) == told
