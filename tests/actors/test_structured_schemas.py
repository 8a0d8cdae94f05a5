"""Random JSON schemas at 1, 2 and 4 stages, asynchronously: finished answers are valid, and nearly all finish."""

from __future__ import annotations

import json

import pytest
import torch
from jsonschema import Draft202012Validator

from .random_schemas import random_schema
from .structured_run import asked, grammar, run


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_finished_answers_are_valid(stages: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        check(range(stages * 1000, stages * 1000 + 10), stages)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [1, 2, 4])
def test_of_300_random_schemas_finished_answers_are_valid(stages: int, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        check(range(300), stages)


def check(seeds: range, stages: int) -> None:
    torch.set_num_threads(1)
    schemas = {f"s{seed}": random_schema(seed) for seed in seeds}
    ran = run(
        [
            asked(name, temperature=(0.0, 1.0)[at % 2], grammar=grammar(json=schema))
            for at, (name, schema) in enumerate(schemas.items())
        ],
        stages,
    )
    finished = [name for name in schemas if ran.ends[name].finish_reason == "stop"]
    wrong = [name for name in finished if not is_valid(ran.text(name), schemas[name])]
    num_valid = len(finished) - len(wrong)
    print(f"\n{stages} stages: {len(finished)} of {len(schemas)} finished by themselves, {num_valid} of them valid")
    assert not wrong, {name: (schemas[name], ran.text(name)) for name in wrong}
    assert len(finished) >= 0.95 * len(schemas)


def is_valid(text: str, schema: dict[str, object]) -> bool:
    return Draft202012Validator(schema).is_valid(json.loads(text))
