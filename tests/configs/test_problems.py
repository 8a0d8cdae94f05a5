"""A hint is the name that was meant, or there is none."""

from __future__ import annotations

import pytest

from penstock.configs.engine import EngineConfig
from penstock.configs.problems import unknown_name
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
