"""Tool calls in Hermes' format: real answers, every cut, damaged calls, hostile text."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.actors.serving.chat_delta import ChatDelta, ChatMessage, ToolCall, joined
from penstock.actors.serving.hermes import HermesParser
from penstock.actors.serving.tool_parsers import tool_parser
from penstock.errors import ConfigError

from .cuts import SIZES, parse

WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": [1, 2]}}\n</tool_call>'
WEATHER_CALL = ToolCall("", "get_weather", '{"city": "Paris", "days": [1, 2]}')
TIME = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
TIME_CALL = ToolCall("", "get_time", "{}")


def read(text: str, size: int = 1 << 30) -> ChatMessage:
    return parse(tool_parser("hermes"), text, [size])


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("No call.\n", ChatMessage("No call.\n")),
        (WEATHER, ChatMessage("", tool_calls=[WEATHER_CALL])),
        (f"{WEATHER}\n{TIME}\n", ChatMessage("", tool_calls=[WEATHER_CALL, TIME_CALL])),
        (f" I'll look.\n\n{WEATHER}", ChatMessage(" I'll look.", tool_calls=[WEATHER_CALL])),
        (f"A\n{WEATHER}\nB\n{TIME}\nC ", ChatMessage("A\nB\nC ", tool_calls=[WEATHER_CALL, TIME_CALL])),
        ("a < b, <tool>, <tool_calls> \n", ChatMessage("a < b, <tool>, <tool_calls> \n")),
    ],
)
def test_real_answers(text: str, message: ChatMessage, size: int) -> None:
    assert read(text, size) == message


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name":"f","arguments":{"a":{"b":[{}]}}}', '{"a":{"b":[{}]}}'),
        ('{"arguments": {"a": 1}, "name": "f"}', '{"a": 1}'),
        (r'{"name": "f", "arguments": "{\"a\": \"\u00e9\"} "}', '{"a": "é"}'),
        (r'{"arguments": "{}", "name": "f"}', "{}"),
        (r'{"n\u0061me": "\u0066", "arguments": {"a": "\"}</tool_call>\\"}}', r'{"a": "\"}</tool_call>\\"}'),
        ('{"id": -1.5e3, "name": "f", "x": [{"name": 0}], "arguments": {}, "y": null}', "{}"),
        ('{"name": "f"}', "{}"),
    ],
)
def test_a_call_may_be_written_in_many_ways(body: str, arguments: str, size: int) -> None:
    assert read(f"<tool_call>{body}</tool_call>", size) == ChatMessage(tool_calls=[ToolCall("", "f", arguments)])


@pytest.mark.parametrize("size", [1, 1000])
@pytest.mark.parametrize(
    "body",
    [
        *("", "\n", "{}", "[]", '"f"', "null", '{"name": "f",}', "{'name': 'f'}", '{"name" "f"}'),
        *('{"arguments": {}}', '{"name": ""}', '{"name": 1}', r'{"name": "\ud800"}', '{"name": "f", "name": "g"}'),
        *('{"name": "f", "arguments": []}', '{"name": "f", "arguments": null}', '{"name": "f", "arguments": "1"}'),
        *('{"name": "f", "arguments": ""}', r'{"name": "f", "arguments": "{\"a\": \"\ud800\"}"}'),
        *('{"name": "f", "arguments": "{} {}"}', '{"name": "f", "arguments": {}, "arguments": {}}'),
        *('{"name": "f", "arguments": {"a": NaN}}', '{"name": "f", "arguments": {"a": 01}}'),
        *(
            '{"name": "f", "arguments": {}}}',
            '{"name": "f", "arguments": {}} {}',
            '{"name": "f", "arguments": {"a": "\n"}}',
        ),
    ],
)
def test_what_is_no_call_comes_out_as_content_and_the_next_call_is_found(body: str, size: int) -> None:
    text = f"Hm \n<tool_call>{body}</tool_call>"
    assert read(f"{text}\n{TIME}", size) == ChatMessage(text, tool_calls=[TIME_CALL])


@pytest.mark.parametrize("end", range(1, len(WEATHER)))
def test_a_call_that_breaks_off_is_content_unless_its_object_is_whole(end: int) -> None:
    text = f"{TIME}\n{WEATHER[:end]}"
    is_whole = end > WEATHER.index("}}") + 1
    content, calls = ("", [TIME_CALL, WEATHER_CALL]) if is_whole else (f"\n{WEATHER[:end]}", [TIME_CALL])
    assert read(text, 5) == read(text) == ChatMessage(content, tool_calls=calls)


def test_a_call_inside_a_broken_call_is_found() -> None:
    assert read(f'<tool_call>{{"name": {WEATHER}') == ChatMessage('<tool_call>{"name":', tool_calls=[WEATHER_CALL])


def test_arguments_go_out_as_they_come_and_the_last_brace_when_the_call_is_complete() -> None:
    parser = HermesParser()
    [first] = parser.feed('<tool_call>{"name": "f", "arguments": {"a"').tool_calls
    assert (first.index, first.name, first.arguments, first.is_last) == (0, "f", '{"a"', False)
    [second] = parser.feed(': "b').tool_calls
    assert (second.index, second.name, second.id, second.arguments) == (0, None, None, ': "b')
    [third] = parser.feed('c"').tool_calls
    assert (third.arguments, third.is_last) == ('c"', False)
    assert parser.feed("}") == ChatDelta()
    assert parser.num_calls == 0
    assert parser.feed("}\n</tool_") == ChatDelta()
    [last] = parser.feed("call>").tool_calls
    assert (last.arguments, last.is_last, parser.num_calls) == ("}", True, 1)
    [other] = parser.feed('<tool_call>{"name": "g", "arguments": {}}</tool_call>').tool_calls
    assert (other.index, other.name, other.arguments, parser.num_calls) == (1, "g", "{}", 2)
    assert other.id != first.id
    assert parser.finish() == ChatDelta()


def test_a_broken_call_that_was_sent_in_part_keeps_its_index_to_itself() -> None:
    parser = HermesParser()
    broken = parser.feed('<tool_call>{"name": "f", "arguments": {"a": 1').tool_calls
    whole = parser.feed(f" oops</tool_call>{TIME}").tool_calls
    assert [(piece.index, piece.name) for piece in broken + whole] == [(0, "f"), (1, "get_time")]
    assert parser.num_calls == 1


def test_content_waits_only_for_what_may_begin_a_call() -> None:
    parser = HermesParser()
    fed = [parser.feed(piece).content for piece in ("Hi", " ", "<", "b>", " \n<tool", "_call", "s> x")]
    assert fed == ["Hi", "", "", " <b>", "", "", " \n<tool_calls> x"]


def test_an_unknown_parser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown tool parser 'hermse'; did you mean 'hermes'"):
        tool_parser("hermse")
    with pytest.raises(ConfigError, match="known are: hermes, qwen"):
        tool_parser("x1")


@dataclass
class Call:
    """A call to be written, and its expected reading."""

    name: str
    arguments: dict[str, object]
    style: str
    ascii_only: bool

    def written(self) -> str:
        arguments = json.dumps(self.arguments, ensure_ascii=self.ascii_only)
        name = json.dumps(self.name, ensure_ascii=self.ascii_only)
        body = {
            "plain": f'{{"name": {name}, "arguments": {arguments}}}',
            "string": f'{{"name": {name}, "arguments": {json.dumps(arguments)}}}',
            "swapped": f'{{"arguments":{arguments},"name":{name}}}',
            "more": f'{{"type": ["function", {{}}], "name": {name}, "arguments": {arguments}, "id": 7}}',
        }[self.style]
        return f"<tool_call>\n{body}\n</tool_call>"


TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["</tool_call>", "<tool_call>", '"', "\\", "{", "}}", " ", "\n", "a\n", "<", "\u2028"]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=5,
)
CALLS = st.builds(
    Call,
    TEXT.filter(bool),
    st.dictionaries(TEXT, JSON_VALUES, max_size=3),
    st.sampled_from(["plain", "string", "swapped", "more"]),
    st.booleans(),
)
CONTENT = st.lists(TEXT, max_size=3).map("".join).filter(lambda text: "<tool_call>" not in text and text[-1:] != "<")


@settings(deadline=None, max_examples=150)
@given(CONTENT, st.lists(st.tuples(CALLS, CONTENT), max_size=3), SIZES)
def test_what_was_written_is_read(before: str, rest: list[tuple[Call, str]], sizes: list[int]) -> None:
    contents = [before, *(content for _, content in rest)]
    text = before + "".join(call.written() + content for call, content in rest)
    last = contents.pop()
    message = parse(HermesParser(), text, sizes)
    assert message == parse(HermesParser(), text)
    kept = last if last.strip() or not rest else ""
    assert message.content == "".join(content.rstrip() for content in contents) + kept
    read = [(call.id, call.name, json.loads(call.arguments)) for call in message.tool_calls]
    assert read == [("", call.name, call.arguments) for call, _ in rest]


def check_consumed(consumed: str, call: ToolCall) -> None:
    """The text that has become a call is the call's, and nothing else."""
    inner = re.fullmatch(r"\s*<tool_call>(.*\})\s*(?:<(?:/(?:t[a-z_]*>?)?)?)?", consumed, re.DOTALL)
    assert inner is not None
    body = json.loads(inner[1])
    arguments = body.get("arguments", {})
    assert call.name == body["name"]
    assert json.loads(call.arguments) == (json.loads(arguments) if isinstance(arguments, str) else arguments)


def check_nothing_is_lost(text: str) -> None:
    """Between two calls' ends stand exactly the content, white space, and a call."""
    parser = HermesParser()
    start, content = 0, ""
    deltas: list[ChatDelta] = []
    for end in range(1, len(text) + 2):
        num_calls = parser.num_calls
        deltas.append(parser.feed(text[end - 1]) if end <= len(text) else parser.finish())
        content += deltas[-1].content
        if parser.num_calls > num_calls:
            assert text[start:end].startswith(content)
            check_consumed(text[start + len(content) : end], joined(deltas).tool_calls[-1])
            start, content = end, ""
    assert text[start:] == content or (not content and text[start:].isspace() and start > 0)


SHARDS = st.sampled_from(
    [
        *("<tool_call>", "<tool_call>", "</tool_call>", "</tool_call>", "<tool_call>{", "}</tool_call>", TIME, WEATHER),
        *('{"name": "f", "arguments": {', '{"name": "f"', ', "arguments": ', '{"a": 1}', '"{}"', '"a": "b"', '"x"'),
        *('{}[]":,\\<> \n1tx\x00é'),
        *("</tool", "<tool_", "-", "1.", "null", "\\u00"),
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.lists(SHARDS, max_size=14).map("".join), SIZES)
def test_garbage_is_read_the_same_in_any_pieces_and_nothing_is_lost(text: str, sizes: list[int]) -> None:
    message = parse(HermesParser(), text, sizes)
    assert message == parse(HermesParser(), text)
    assert all(isinstance(json.loads(call.arguments), dict) for call in message.tool_calls)
    check_nothing_is_lost(text)


@settings(deadline=None, max_examples=100)
@given(CALLS, st.data())
def test_a_damaged_call_loses_nothing(call: Call, data: st.DataObject) -> None:
    text = call.written()
    at = data.draw(st.integers(0, len(text)))
    check_nothing_is_lost(text[:at] + data.draw(SHARDS) + text[at + data.draw(st.integers(0, 2)) :] + TIME)


OPEN_CALL = '<tool_call>{"name": "f", "arguments": {"a": '
HOSTILE = {
    "deep": OPEN_CALL + "[" * 200_000,
    "deep and whole": OPEN_CALL + "[" * 100_000 + "]" * 100_000 + "}}",
    "long string": OPEN_CALL + '"' + "\\n x" * 50_000,
    "long string form": OPEN_CALL.replace('{"a": ', '"{') + " " * 200_000,
    "long number": OPEN_CALL + "1" * 200_000,
    "white space": " \n" * 100_000,
    "white space in a call": "<tool_call>" + " \n" * 100_000,
    "beginnings of tags": "<tool_cal" * 22_222,
    "empty calls": "<tool_call>" * 18_181,
    "calls": (TIME + "x") * 3_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_200_kb_at_once_take_no_time(name: str) -> None:
    start_s = time.process_time()
    message = read(HOSTILE[name])
    assert time.process_time() - start_s < 3  # 0.13 alone, without the collections of a whole test run
    assert len(message.content) + len(message.tool_calls) > 0


def test_200_kb_one_character_at_a_time_take_seconds() -> None:
    text = "".join(hostile[:20_000] + ("}" if "deep" not in name else "x") for name, hostile in HOSTILE.items())
    start_s = time.process_time()
    read(text, 1)
    assert time.process_time() - start_s < 6  # 2.6 on a slow machine; a quadratic parser takes minutes
