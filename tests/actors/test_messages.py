"""A conversation has one prompt, whichever way it comes."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.actors.commands.batch import _prompt
from penstock.actors.llm import LLM
from penstock.actors.serving.chat_prompt import chat_prompt
from penstock.actors.serving.chat_protocol import ChatRequest
from penstock.errors import RequestError

from .fake_engine import FakeEngine, desk_of

CALLS = (  # as Qwen2.5 writes them
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or () %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}{% endfor %}{% endfor %}'
)


@pytest.fixture
def llm() -> LLM:
    face = LLM.__new__(LLM)
    face._desk = desk_of(FakeEngine())
    face.get_tokenizer().chat_template = CALLS
    return face


def call(arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": "add", "arguments": arguments}}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "developer", "content": "be brief"}], "<system>be brief"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "<user>a\nb"),
        (
            [{"role": "assistant", "tool_calls": [call('{"a": 1}')]}],
            '<assistant>{"name": "add", "arguments": {"a": 1}}',
        ),
        (
            [{"role": "assistant", "content": None, "tool_calls": [call("a")]}],
            '<assistant>{"name": "add", "arguments": "a"}',
        ),
        ([{"role": "tool", "tool_call_id": "1", "content": "1", "name": None}], "<tool>1"),
    ],
)
def test_a_conversation_has_one_prompt_whichever_way_it_comes(
    llm: LLM, messages: list[dict[str, Any]], prompt: str
) -> None:
    tokenizer = llm._desk.tokenizer
    assert tokenizer is not None
    http = chat_prompt(ChatRequest.model_validate({"messages": messages}), tokenizer, wants_thinking=True)
    assert http["prompt"] == prompt
    assert llm.chat_prompts(messages) == [http]
    assert _prompt(llm, {"messages": messages}, chat=False) == http


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "a"])
def test_content_that_is_no_text_is_refused(llm: LLM, part: object) -> None:
    with pytest.raises(RequestError, match="only text can be served"):
        llm.chat_prompts([{"role": "user", "content": [part]}])
