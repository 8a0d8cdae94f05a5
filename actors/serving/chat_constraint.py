"""What a chat request forces its answer to be: a response format, or a call that has to be made.

A forced call is written in the model's own format of tool calls, so that the same parser reads it.
"""

from __future__ import annotations

import json
from typing import Any

from ...configs.structured import StructuredOutputsParams
from .chat_protocol import ChatRequest, FunctionDefinition, NamedToolChoice
from .errors import refused
from .fields import constraint
from .tool_parsers import TOOL_FORMATS


def constraint_of(
    body: ChatRequest, parser: str | None, format_field: str = "response_format"
) -> tuple[str, StructuredOutputsParams | None]:
    """The constraint, if any, behind the field that it comes from; `format_field` is the response format's.

    Raises ApiError where two contradict each other, RequestError for one that no grammar can hold a text to.
    """
    given = {
        format_field: _of_format(body, format_field),
        "tools": _of_tool_choice(body, parser),
        "structured_outputs": None if body.structured_outputs is None else body.structured_outputs.params(),
    }
    found = [(field, each) for field, each in given.items() if each is not None]
    if len(found) > 1:
        raise refused(f"{format_field}, structured_outputs and a forced tool_choice exclude each other: give one")
    return found[0] if found else ("structured_outputs", None)


def _of_format(body: ChatRequest, field: str) -> StructuredOutputsParams | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return constraint(field, json_object=True)
    return constraint(field, json=wanted.json_schema.schema_)


def _of_tool_choice(body: ChatRequest, parser: str | None) -> StructuredOutputsParams | None:
    choice = body.tool_choice
    if choice in (None, "none", "auto"):
        return None
    if parser is None:
        raise refused("a tool call can't be forced: the server runs without a tool_call_parser", "tool_choice")
    functions = [tool.function for tool in body.tools or ()]
    if isinstance(choice, NamedToolChoice):
        functions = [function for function in functions if function.name == choice.function.name]
    stops_after_first = isinstance(choice, NamedToolChoice) or body.parallel_tool_calls is False
    calls = {
        "type": "tags_with_separator",
        "tags": [_tag(function, *TOOL_FORMATS[parser].call) for function in functions],
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": stops_after_first,
    }
    return constraint("tools", structural_tag=json.dumps({"type": "structural_tag", "format": calls}))


def _tag(function: FunctionDefinition, begin: str, end: str) -> dict[str, Any]:
    return {
        "type": "tag",
        "begin": begin % json.dumps(function.name),
        "content": {"type": "json_schema", "json_schema": _arguments_schema(function), "max_whitespace_cnt": 1},
        "end": end,
    }


def _arguments_schema(function: FunctionDefinition) -> dict[str, Any]:
    """The parameters, as an object's also where they don't say so: no other value is a call's arguments."""
    schema = {"type": "object"} | (function.parameters or {})
    if schema["type"] not in ("object", ["object"]):
        raise refused(f"the parameters of {function.name!r} have the type {schema['type']!r}, not 'object'", "tools")
    return schema
