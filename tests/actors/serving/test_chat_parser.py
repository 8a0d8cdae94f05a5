"""Reasoning and tool calls in one answer; either, or neither."""

from __future__ import annotations

import pytest

from penstock.actors.serving.chat_delta import ChatDelta, ChatMessage, ToolCall, ToolCallDelta, joined
from penstock.actors.serving.chat_parser import chat_parser
from penstock.errors import ConfigError

from .cuts import parse

CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
ANSWER = f"<think>\nShall I {CALL}?\n</think>\n\nI shall.\n{CALL}"
WHOLE_CALL = ToolCall("", "f", '{"a": 1}')


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("tool", "reasoning", "message"),
    [
        ("qwen", "qwen3", ChatMessage("I shall.", f"Shall I {CALL}?", [WHOLE_CALL])),
        (None, "qwen3", ChatMessage(f"I shall.\n{CALL}", f"Shall I {CALL}?")),
        ("hermes", None, ChatMessage("<think>\nShall I?\n</think>\n\nI shall.", "", [WHOLE_CALL, WHOLE_CALL])),
        (None, None, ChatMessage(ANSWER)),
    ],
)
def test_each_part_is_looked_for_only_when_asked(
    tool: str | None, reasoning: str | None, message: ChatMessage, size: int
) -> None:
    parser = chat_parser(tool, reasoning, "")
    assert parse(parser, ANSWER, [size]) == message
    assert parser.num_calls == len(message.tool_calls)


@pytest.mark.parametrize(("prompt", "message"), [("", ChatMessage("<thi")), ("<think>", ChatMessage("", "<thi"))])
def test_what_the_first_parser_held_back_reaches_the_second(prompt: str, message: ChatMessage) -> None:
    assert parse(chat_parser("hermes", "qwen3", prompt), "<thi") == message


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="tool parser 'x1'"):
        chat_parser("x1", None, "")
    with pytest.raises(ConfigError, match="reasoning parser 'x1'"):
        chat_parser(None, "x1", "")


def test_pieces_join_to_the_message_without_the_calls_that_broke_off() -> None:
    broken = ToolCallDelta(0, "f", "call_0", "{")
    pieces = [ToolCallDelta(1, "g", "call_1", "{"), ToolCallDelta(1, arguments="}", is_last=True)]
    deltas = [ChatDelta("a", "b", [broken]), ChatDelta("c", "", pieces[:1]), ChatDelta("", "d", pieces[1:])]
    assert joined(deltas) == ChatMessage("ac", "bd", [ToolCall("call_1", "g", "{}")])
