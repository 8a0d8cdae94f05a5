"""What a chat request forces its answer to be: a response format, or a call that has to be made.

A forced call is written in the model's own format of tool calls, so that the same parser reads it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ...configs.structured import StructuredOutputsParams
from ...errors import RequestError
from .chat_protocol import ChatRequest, FunctionDefinition, NamedToolChoice
from .errors import refused
from .tool_parsers import TOOL_FORMATS


def constraint_of(body: ChatRequest, parser: str | None) -> tuple[str, StructuredOutputsParams | None]:
    """The constraint, if any, behind the field that it comes from.

    Raises ApiError where two contradict each other, and, with that field, for one that no grammar can hold a text to.
    """
    structured = body.structured_outputs
    makers: dict[str, Callable[[], StructuredOutputsParams | None]] = {
        "response_format": lambda: _of_format(body),
        "tools": lambda: _of_tool_choice(body, parser),
        "structured_outputs": lambda: None if structured is None else structured.params(),
    }
    found = []
    for field, make in makers.items():
        try:
            constraint = make()
        except RequestError as error:
            raise refused(str(error).replace("structured_outputs", field, 1), field) from None
        if constraint is not None:
            found.append((field, constraint))
    if len(found) > 1:
        raise refused("response_format, structured_outputs and a forced tool_choice exclude each other: give one")
    return found[0] if found else ("structured_outputs", None)


def _of_format(body: ChatRequest) -> StructuredOutputsParams | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=wanted.json_schema.schema_)


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
    return StructuredOutputsParams(structural_tag=json.dumps({"type": "structural_tag", "format": calls}))


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
