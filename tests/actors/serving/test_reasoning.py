"""Qwen3's reasoning, told from the answer: opened by the prompt or by the text, closed or not, in any pieces."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.actors.serving.chat_delta import ChatMessage
from penstock.actors.serving.reasoning import reasoning_parser
from penstock.errors import ConfigError

from .cuts import SIZES, parse

PLAIN = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
OPEN = f"{PLAIN}<think>\n"  # as Qwen3's thinking models' template ends
CLOSED = f"{PLAIN}<think>\n\n</think>\n\n"  # enable_thinking=False


def read(prompt: str, text: str, sizes: list[int]) -> ChatMessage:
    return parse(reasoning_parser("qwen3", prompt), text, sizes)


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("prompt", "text", "reasoning", "content"),
    [
        (PLAIN, "<think>\nSo, \n\nso.\n</think>\n\nHello.\n", "So, \n\nso.", "Hello.\n"),
        (PLAIN, "<think>\n\n</think>\n\nHello.", "", "Hello."),
        (PLAIN, "\n <think>So</think> Hello.", "So", " Hello."),
        (PLAIN, "\n Hello </think> all", "", "\n Hello </think> all"),
        (PLAIN, "<thinking> aloud", "", "<thinking> aloud"),
        (PLAIN, "<thi", "", "<thi"),
        (PLAIN, "\n", "", "\n"),
        (OPEN, "So, so.\n</think>\n\nHello.", "So, so.", "Hello."),
        (OPEN, "<think>\nSo\n</think>Hello.", "So", "Hello."),
        (OPEN, "\n\n  So </thin </think>Hello <think>a</think>", "  So </thin ", "Hello <think>a</think>"),
        (OPEN, "</think>\n\nHello.", "", "Hello."),
        (OPEN, "So it\n\n</thi", "So it\n\n</thi", ""),
        (OPEN, "<thi", "<thi", ""),
        (OPEN, "So", "So", ""),
        (CLOSED, "Hello </think>", "", "Hello </think>"),
        (CLOSED, "<think>So</think>Hello.", "So", "Hello."),
        (PLAIN, "", "", ""),
        (OPEN, "", "", ""),
    ],
)
def test_real_answers(prompt: str, text: str, reasoning: str, content: str, size: int) -> None:
    assert read(prompt, text, [size]) == ChatMessage(content, reasoning)


def test_reasoning_waits_only_for_what_may_be_the_closing_tag() -> None:
    parser = reasoning_parser("qwen3", OPEN)
    fed = [parser.feed(piece).reasoning for piece in ("So", "\n", "</", "b>", "</think", "er", "\n\n</think>\n")]
    assert fed == ["So", "", "", "\n</b>", "", "</thinker", ""]
    assert [parser.feed(piece).content for piece in ("\n", "Hel", "<", "\n")] == ["", "Hel", "<", "\n"]


def test_an_unknown_parser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown reasoning parser 'qwen4'; did you mean 'qwen3'"):
        reasoning_parser("qwen4", PLAIN)


SHARDS = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "</", "<", ">", "\n", " ", "so", "é", "<tool_call>"]), max_size=10
)
WORDS = SHARDS.map("".join).filter(lambda text: "think>" not in text and "<" not in text[-7:])


@settings(deadline=None, max_examples=150)
@given(WORDS, SHARDS.map("".join), st.booleans(), st.booleans(), SIZES)
def test_what_was_thought_and_said_is_told_apart(
    thought: str, said: str, prompt_opens: bool, text_opens: bool, sizes: list[int]
) -> None:
    opening = "<think>" if text_opens or not prompt_opens else ""
    message = read(OPEN if prompt_opens else PLAIN, f"{opening}{thought}</think>{said}", sizes)
    assert message == ChatMessage(said.lstrip("\n"), thought.strip("\n"))


@settings(deadline=None, max_examples=200)
@given(st.sampled_from([PLAIN, OPEN, CLOSED]), SHARDS.map("".join), SIZES)
def test_garbage_is_read_the_same_in_any_pieces_and_nothing_is_lost(prompt: str, text: str, sizes: list[int]) -> None:
    message = read(prompt, text, sizes)
    assert message == read(prompt, text, [1000])
    kept = message.reasoning + message.content
    for tag in ("<think>", "</think>"):  # one of each may have gone, and newlines beside it
        if text.count(tag) > kept.count(tag):
            text = text.replace(tag, "", 1)
    assert "".join(kept.split()) == "".join(text.split())
