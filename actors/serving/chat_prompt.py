"""A conversation as the model's chat template takes it, and what the template is told beside it."""

from __future__ import annotations

import json
from typing import Any

from ...errors import RequestError
from ..prompts import PromptDict
from ..tokenizer import Message, Tokenizer
from .chat_protocol import ChatMessage, ChatRequest, ContentPart, ToolCall
from .errors import refused

_OURS = {"messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message"}
_OURS |= {"tools", "documents", "padding", "truncation", "max_length", "return_tensors", "return_dict"}


def chat_prompt(body: ChatRequest, tokenizer: Tokenizer, wants_thinking: bool) -> PromptDict:
    """The conversation as text and token ids; raises RequestError for messages that the template can't take."""
    text = tokenizer.chat_prompt([_message(message) for message in body.messages], **_options(body, wants_thinking))
    (ids,) = tokenizer.encode([text], add_special_tokens=bool(body.add_special_tokens))
    return {"prompt": text, "prompt_token_ids": ids}


def _options(body: ChatRequest, wants_thinking: bool) -> dict[str, Any]:
    given = dict(body.chat_template_kwargs or {})
    if clash := _OURS & given.keys():
        raise refused(f"chat_template_kwargs may not hold {sorted(clash)[0]!r}", "chat_template_kwargs")
    options: dict[str, Any] = {"add_generation_prompt": body.add_generation_prompt is not False}
    if body.continue_final_message:
        options |= {"add_generation_prompt": False, "continue_final_message": True}
    if body.tools and body.tool_choice != "none":
        options["tools"] = [tool.model_dump(exclude_none=True) for tool in body.tools]
    if not wants_thinking:
        options["enable_thinking"] = False
    return options | given


def _message(message: ChatMessage) -> Message:
    """The message as templates know it: plain text, arguments of calls as objects, only the fields that are there."""
    values = message.model_dump(exclude_none=True)
    values["content"] = _text(message.content)
    if message.role == "developer":
        values["role"] = "system"  # templates know no other name for it
    if message.tool_calls:
        values["tool_calls"] = [_call(call) for call in message.tool_calls]
    return values


def _text(content: str | list[ContentPart] | None) -> str:
    if not isinstance(content, list):
        return content or ""
    for part in content:
        if part.type != "text" or part.text is None:
            raise RequestError(f"a message has content of type {part.type[:64]!r}; only text can be served")
    return "\n".join(part.text or "" for part in content)


def _call(call: ToolCall) -> dict[str, Any]:
    """A call of an earlier answer; arguments that are no JSON object stay text."""
    arguments: Any = call.function.arguments
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    return {
        "id": call.id,
        "type": call.type,
        "function": {"name": call.function.name, "arguments": parsed if isinstance(parsed, dict) else arguments},
    }
