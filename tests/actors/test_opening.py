"""What ends an answer: what the model's files name, and the tokenizer's own eos, for requests and grammars alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.models import Unigram

from penstock.actors.opening import open_desk
from penstock.actors.tokenizer import Tokenizer
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.configs.sampling import SamplingParams
from penstock.configs.tokenizer_files import eos_token_id
from penstock.model.grammar_compiler import GrammarCompiler

from .fake_engine import DEMO, END, FakeEngine

PAD = 256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A chat model's tokenizer over a base model's generation_config.json."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(DEMO) / name, tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": PAD}))
    return tmp_path


@pytest.mark.parametrize(("skip", "expected"), [(False, (PAD, END)), (True, (PAD,))])
def test_the_tokenizers_eos_ends_requests_and_grammars_too(folder: Path, skip: bool, expected: tuple[int]) -> None:
    config = EngineConfig(model=str(folder), skip_tokenizer_init=skip)
    engine = FakeEngine(config=config, model_config=read_model_config(folder))
    desk = open_desk(engine, None if skip else Tokenizer(str(folder)))  # type: ignore[arg-type]
    (answer,) = desk.prepare([[97]], SamplingParams())
    assert answer.requests[0].eos_token_ids == expected
    assert GrammarCompiler.of(engine.config, engine.model_config).eos_token_ids == list(expected)


def test_an_eos_beyond_the_models_vocabulary_is_left_out(folder: Path) -> None:
    engine = FakeEngine(model_config=replace(read_model_config(folder), vocab_size=END))
    (answer,) = open_desk(engine, Tokenizer(str(folder))).prepare([[97]], SamplingParams())  # type: ignore[arg-type]
    assert answer.requests[0].eos_token_ids == (PAD,)


@pytest.mark.parametrize(
    ("config", "older"),
    [
        ({"eos_token": "<|pad|>"}, None),
        ({"eos_token": {"content": "<|pad|>", "__type": "AddedToken"}}, None),
        ({"eos_token": "<|end|>"}, {"eos_token": {"content": "<|pad|>", "lstrip": False}}),
        ({"eos_token": "a"}, {}),
        ({}, None),
    ],
)
def test_the_files_say_what_transformers_finds(folder: Path, config: dict[str, Any], older: object) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if older is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps(older))
    assert eos_token_id(folder) == Tokenizer(str(folder)).eos_token_id


def test_a_vocabulary_that_is_a_list_counts_its_tokens(tmp_path: Path) -> None:
    Backend(Unigram([("<unk>", 0.0), ("</s>", -1.0)], 0, False)).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert eos_token_id(tmp_path) == 1
    assert eos_token_id(tmp_path / "nowhere") is None
