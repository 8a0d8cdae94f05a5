"""A conversation as chat templates know it, from what OpenAI's clients call one.

Pure: dicts in, dicts out. The same from Python, from a file and over HTTP, so that a conversation has one prompt.
"""

from __future__ import annotations

import json
from typing import Any

from ..errors import RequestError

Message = dict[str, Any]  # {"role": ..., "content": ...}, with OpenAI's names


def plain_message(message: Message) -> Message:
    """The message with plain text, arguments of calls as objects, and only the fields that are there.

    What has another form than OpenAI's stays as it is, for the template to judge. Raises RequestError for content that
    isn't text.
    """
    if not isinstance(message, dict):
        return message
    values = {name: value for name, value in message.items() if value is not None}
    values["content"] = _text(message.get("content"))
    if message.get("role") == "developer":
        values["role"] = "system"  # templates know no other name for it
    if isinstance(calls := message.get("tool_calls"), list):
        values["tool_calls"] = [_call(call) for call in calls]
    return values


def _text(content: Any) -> Any:
    return "\n".join(map(_part, content)) if isinstance(content, list) else "" if content is None else content


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise RequestError(f"a message has content of type {str(kind)[:64]!r}; only text can be served")
    return str(part["text"])


def _call(call: Any) -> Any:
    """A call of an earlier answer; arguments that are no JSON object stay text."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        parsed = None
    return call | {"function": function | {"arguments": parsed if isinstance(parsed, dict) else arguments}}
