"""A request to `/v1/responses` as the chat request that says the same: one way of templates, tools and grammars.

Items that the model has said one after another, reasoning, text and calls, are one message of the assistant.
Reasoning that can be read goes to the chat template as that message's `reasoning_content`, which most templates leave
out of earlier turns; of encrypted reasoning, which nobody here has written, nothing is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from .chat_protocol import (
    ChatMessage,
    ChatRequest,
    ContentPart,
    FunctionCall,
    FunctionDefinition,
    JsonSchema,
    NamedFunction,
    NamedToolChoice,
    ResponseFormat,
    Tool,
    ToolCall,
)
from .errors import ApiError, malformed, refused
from .fields import SamplingFields
from .responses_protocol import FunctionChoice, InputItem, InputPart, ResponsesRequest

_NEEDED = {  # the fields that an item of this type can't be without
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def chat_of(body: ResponsesRequest) -> ChatRequest:
    """Raises ApiError for what can't be served, among it tools and a choice among them that don't agree."""
    if not (messages := list(_messages(body))):
        raise refused("input holds nothing that the model could read", "input")
    same = {name: getattr(body, name) for name in SamplingFields.model_fields}
    try:
        return ChatRequest(**same | _renamed(body) | {"messages": messages})
    except ValidationError as error:
        raise malformed(error, ResponsesRequest) from None


def _renamed(body: ResponsesRequest) -> dict[str, Any]:
    """What chat has by another name, or in another form."""
    return {
        "max_completion_tokens": body.max_output_tokens,
        "logprobs": body.wants_logprobs,
        "top_logprobs": body.top_logprobs if body.wants_logprobs else None,
        "response_format": _response_format(body),
        "tools": [_tool(tool.model_dump(exclude={"type"})) for tool in body.tools] if body.tools else None,
        "tool_choice": _tool_choice(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "chat_template_kwargs": _template_values(body),
    }


def _tool(function: dict[str, Any]) -> Tool:
    return Tool(type="function", function=FunctionDefinition(**function))


def _tool_choice(body: ResponsesRequest) -> str | NamedToolChoice | None:
    if isinstance(body.tool_choice, FunctionChoice):
        return NamedToolChoice(type="function", function=NamedFunction(name=body.tool_choice.name))
    return None if body.tool_choice == "auto" else body.tool_choice  # clients say auto where there are no tools too


def _response_format(body: ResponsesRequest) -> ResponseFormat | None:
    wanted = body.text.format if body.text else None
    if wanted is None:
        return None
    schema = None if wanted.schema_ is None else JsonSchema(name=wanted.name or "", schema=wanted.schema_)
    return ResponseFormat(type=wanted.type, json_schema=schema)


def _template_values(body: ResponsesRequest) -> dict[str, Any] | None:
    if body.reasoning is None or body.reasoning.effort != "none":
        return body.chat_template_kwargs
    return {"enable_thinking": False} | (body.chat_template_kwargs or {})


def _messages(body: ResponsesRequest) -> Iterator[ChatMessage]:
    if body.instructions:
        yield ChatMessage(role="system", content=body.instructions)
    if isinstance(body.input, str):
        yield ChatMessage(role="user", content=body.input)
        return
    said: _Said | None = None  # by the model, since anybody else has spoken
    for at, item in enumerate(body.input):
        kind = _kind(at, item)
        is_models = kind in ("reasoning", "function_call") or item.role == "assistant"
        if said is not None and not (is_models and said.goes_on_with(kind)):
            yield from said.message()
            said = None
        if is_models:
            said = said or _Said()
            said.take(at, kind, item)
        elif kind == "function_call_output":
            yield ChatMessage(role="tool", tool_call_id=item.call_id, content=_parts(at, item.output))
        else:
            assert item.role is not None
            yield ChatMessage(role=item.role, content=_parts(at, item.content))
    if said is not None:
        yield from said.message()


class _Said:
    """One message of the assistant while its items are read."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._content: list[ContentPart] = []
        self._calls: list[ToolCall] = []

    def goes_on_with(self, kind: str) -> bool:
        """Whether such an item is more of this message; a text behind a text, or reasoning behind one, begins anew."""
        if kind == "function_call":
            return True
        has_ended = bool(self._content) and not self._calls
        return not has_ended if kind == "message" else not (self._content or self._calls)

    def take(self, at: int, kind: str, item: InputItem) -> None:
        """Adds an item."""
        if kind == "function_call":
            function = FunctionCall(name=item.name or "", arguments=item.arguments or "")
            self._calls.append(ToolCall(id=item.call_id or "", function=function))
        elif kind == "reasoning":
            self._reasoning += [part.text or "" for part in _parts(at, item.content) or _parts(at, item.summary)]
        else:
            self._content += _parts(at, item.content)

    def message(self) -> Iterator[ChatMessage]:
        """What the chat template is given; nothing where there was only reasoning that nobody can read."""
        more: dict[str, Any] = {"reasoning_content": "\n".join(self._reasoning)} if self._reasoning else {}
        if self._content or self._calls or more:
            yield ChatMessage(role="assistant", content=self._content, tool_calls=self._calls or None, **more)


def _kind(at: int, item: InputItem) -> str:
    kind = item.type or "message"
    if kind == "item_reference":
        raise _wrong(at, "refers to an item of an earlier answer; the server keeps nothing: send the item itself")
    if kind not in _NEEDED:
        raise _wrong(at, f"is of type {kind[:64]!r}; an item may be one of {', '.join(_NEEDED)}")
    if missing := [name for name in _NEEDED[kind] if getattr(item, name) is None]:
        raise _wrong(at, f"is a {kind} without {' and '.join(missing)}")
    return kind


def _parts(at: int, content: str | Sequence[InputPart] | None) -> list[ContentPart]:
    """Text as chat has it, which joins its parts."""
    if isinstance(content, str):
        return [ContentPart(type="text", text=content)]
    return [ContentPart(type="text", text=_text(at, part)) for part in content or ()]


def _text(at: int, part: InputPart) -> str:
    text = part.refusal if part.type == "refusal" else part.text if part.type in _TEXTS else None
    if text is None:
        raise _wrong(at, f"has content of type {part.type[:64]!r}; only text can be served")
    return text


def _wrong(at: int, problem: str) -> ApiError:
    return refused(f"input.{at} {problem}", "input")
