"""What a chat request forces its answer to be: a response format, or a call that has to be made.

A forced call is written in the model's own format of tool calls, so that the same parser reads it.
"""

from __future__ import annotations

import json
from typing import Any

from ...configs.structured import StructuredOutputsParams
from ...errors import RequestError
from .chat_protocol import ChatRequest, FunctionDefinition, NamedToolChoice
from .errors import refused
from .tool_parsers import TOOL_FORMATS


def constraint_of(body: ChatRequest, parser: str | None) -> StructuredOutputsParams | None:
    """The constraint, or None; raises ApiError where two contradict each other."""
    try:
        found = [each for each in (_of_format(body), _of_tool_choice(body, parser)) if each is not None]
        if body.structured_outputs is not None:
            found.append(body.structured_outputs.params())
    except RequestError as error:
        field = field_of_constraint(body)
        raise refused(str(error).replace("structured_outputs", field, 1), field) from None
    if len(found) > 1:
        raise refused("response_format, structured_outputs and a forced tool_choice exclude each other: give one")
    return found[0] if found else None


def field_of_constraint(body: ChatRequest) -> str:
    """Which field of the request brings the constraint that it has."""
    if body.structured_outputs is not None:
        return "structured_outputs"
    return "tools" if body.response_format is None or body.response_format.type == "text" else "response_format"


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
