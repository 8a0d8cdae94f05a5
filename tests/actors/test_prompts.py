"""What a prompt may be, and what is said of one that can't be served."""

from __future__ import annotations

import pytest

from penstock.actors.prompts import ContextLengthError, Limits, Prompt, PromptError, as_list, check_prompt, encode
from penstock.actors.tokenizer import Tokenizer

from .fake_engine import DEMO

TOKENIZER = Tokenizer(DEMO)
LIMITS = Limits(vocab_size=264, max_model_len=32, cache_tokens=24)


def test_a_prompt_is_text_or_ids_or_a_dict_of_either() -> None:
    prompts: list[Prompt] = [
        "hi",
        [1, 2],
        {"prompt_token_ids": [3]},
        {"prompt": "yo"},
        {"prompt": "said", "prompt_token_ids": [4]},
    ]
    encoded = encode(prompts, TOKENIZER)
    assert [item.token_ids for item in encoded] == [[104, 105], [1, 2], [3], [121, 111], [4]]
    assert [item.text for item in encoded] == ["hi", None, None, "yo", "said"]


def test_one_prompt_counts_as_several_prompts_of_one() -> None:
    assert as_list("a") == ["a"]
    assert as_list([1, 2]) == [[1, 2]]
    assert as_list({"prompt": "a"}) == [{"prompt": "a"}]
    several: list[Prompt] = ["a", [1]]
    assert as_list(several) == several
    assert as_list([]) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (7, "prompt 1: is a int"),
        ({"text": "a"}, r"prompt 1: has the keys \['text'\]; it needs a text 'prompt' or 'prompt_token_ids'"),
        ({"prompt_token_ids": None}, "prompt 1: has None for token ids; they are a list of integers"),
        ([1, "a"], "prompt 1: holds 'a', which is no token id"),
        ([True], "prompt 1: holds True"),
        ({"prompt_token_ids": [1.5]}, "prompt 1: holds 1.5"),
        ("a \ud83d", r"prompt 1: holds half a character, '\\ud83d'"),
    ],
)
def test_what_is_no_prompt_is_named_with_its_index(prompt: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        encode(["fine", prompt], TOKENIZER)  # type: ignore[list-item]


def test_text_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(PromptError, match=r"prompt 1: is text, but there is no tokenizer \(skip_tokenizer_init\)"):
        encode([[1], "a"], None)


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "problem"),
    [
        (32, 1, r"has 32 tokens; the maximum context length is 32 tokens \(max_model_len\), .* a prompt may be 31"),
        (20, 5, r"needs 25 tokens of cache \(20 of the prompt, max_tokens 5\); the cache holds 24, .* is 24 tokens"),
    ],
)
def test_what_does_not_fit_names_both_numbers(num_tokens: int, max_tokens: int, problem: str) -> None:
    with pytest.raises(ContextLengthError, match=f"prompt 3: {problem}"):
        check_prompt(3, [1] * num_tokens, max_tokens, LIMITS)


def test_what_fits_to_the_last_token_is_taken_and_nothing_is_not() -> None:
    check_prompt(0, [1] * 20, 4, LIMITS)
    with pytest.raises(PromptError, match="is empty; it needs at least 1 token"):
        check_prompt(0, [], 1, LIMITS)


@pytest.mark.parametrize("token_id", [-1, 264, 1 << 40])
def test_ids_outside_the_vocabulary_are_named(token_id: int) -> None:
    with pytest.raises(PromptError, match=f"holds the token id {token_id}; ids go from 0 to 263"):
        check_prompt(0, [5, token_id], 1, LIMITS)
