"""The demo model answers, is small, and was checked on questions it never saw."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

import penstock.model.demo
from penstock.model.demo import questions
from penstock.model.demo.evaluate import Model, answers, as_chat
from penstock.model.demo.questions import Question

FOLDER = Path(penstock.model.demo.__file__).parent


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    return loaded


@pytest.fixture(scope="module")
def model() -> Model:
    loaded: Model = Qwen3ForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return loaded.eval()


def share_right(given: Sequence[str], asked: Sequence[Question], lead: str = "") -> float:
    pairs = zip(given, asked, strict=True)
    return sum(text == f"{lead}{q.answer}<|end|>" for text, q in pairs) / len(asked)


def test_held_out_questions_of_every_kind_are_answered_in_a_chat(
    model: Model, tokenizer: PreTrainedTokenizerFast
) -> None:
    asked = questions.sample(105, seed=7)
    assert {q.kind for q in asked} == set(questions.kinds)
    given = answers(model, tokenizer, [as_chat(tokenizer, [q]) for q in asked])
    assert share_right(given, asked) >= 0.95


def test_held_out_sums_are_completed_without_a_chat(model: Model, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = [q for q in questions.sample(210, seed=8) if q.completion != q.text]
    assert len(asked) == 20
    given = answers(model, tokenizer, [q.completion for q in asked])
    assert share_right(given, asked, lead=" ") >= 0.95


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Grüße, 漢字 🙂\x00\n\t  a , b 's"
    ids = tokenizer(text)["input_ids"]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_the_folder_stays_under_six_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 6_000_000


def test_the_split_is_the_one_the_weights_were_trained_with() -> None:
    kept = [a for a in range(10, 100) if questions.held_out(f"What is {a} + 25?")]
    assert kept == [12, 19, 23, 61, 63, 66, 81, 84, 86, 98]
    trained, unseen = questions.sample(420, 3, held_out=False), questions.sample(420, 3)
    is_open = [q.kind not in questions.closed_kinds for q in unseen]
    assert all(questions.held_out(q.text) for q, counts in zip(unseen, is_open, strict=True) if counts)
    assert not any(questions.held_out(q.text) for q in trained if q.kind not in questions.closed_kinds)


def test_a_seed_always_draws_the_same_questions() -> None:
    assert questions.sample(50, seed=1) == questions.sample(50, seed=1)
    assert questions.sample(50, seed=1) != questions.sample(50, seed=2)
