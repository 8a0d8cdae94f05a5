"""What a chat request forces its answer to be: a response format, or a call that has to be made.

A call is written in the model's own format of tool calls, so that the same parser reads it. Where there are tools to
choose from beside a response format, the answer is either calls or what the format says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ...configs.json_schema import problem_of_schema
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
        format_field: _of_format(body, format_field, parser),
        "tools": _of_tool_choice(body, parser),
        "structured_outputs": None if body.structured_outputs is None else body.structured_outputs.params(),
    }
    found = [(field, each) for field, each in given.items() if each is not None]
    if len(found) > 1:
        raise refused(f"{format_field}, structured_outputs and a forced tool_choice exclude each other: give one")
    return found[0] if found else ("structured_outputs", None)


def _of_format(body: ChatRequest, field: str, parser: str | None) -> StructuredOutputsParams | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if wanted.json_schema is None:
        schema, alone = {"type": "object"}, constraint(field, json_object=True)
    else:
        schema, alone = wanted.json_schema.schema_, constraint(field, json=wanted.json_schema.schema_)
    if not body.tools or parser is None or body.tool_choice not in (None, "auto"):
        return alone
    functions = [_as_may_be_called(tool.function) for tool in body.tools]
    calls = _calls(functions, parser, stops_after_first=body.parallel_tool_calls is False)
    return constraint(field, structural_tag=_tagged({"type": "or", "elements": [calls, _json(schema)]}))


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
    return constraint("tools", structural_tag=_tagged(_calls(functions, parser, stops_after_first)))


def _tagged(text_format: dict[str, Any]) -> str:
    return json.dumps({"type": "structural_tag", "format": text_format})


def _calls(functions: Iterable[FunctionDefinition], parser: str, stops_after_first: bool) -> dict[str, Any]:
    """One call, or several where it doesn't stop after the first."""
    return {
        "type": "tags_with_separator",
        "tags": [_tag(function, *TOOL_FORMATS[parser].call) for function in functions],
        "separator": "\n",
        "at_least_one": True,
        "stop_after_first": stops_after_first,
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": schema, "max_whitespace_cnt": 1}


def _as_may_be_called(function: FunctionDefinition) -> FunctionDefinition:
    """A function that nobody forces: parameters that no grammar can hold a call to don't make the request wrong."""
    schema = function.parameters or {}
    if _is_objects(schema) and problem_of_schema(schema) is None:
        return function
    return function.model_copy(update={"parameters": None})


def _tag(function: FunctionDefinition, begin: str, end: str) -> dict[str, Any]:
    return {
        "type": "tag",
        "begin": begin % json.dumps(function.name),
        "content": _json(_arguments_schema(function)),
        "end": end,
    }


def _arguments_schema(function: FunctionDefinition) -> dict[str, Any]:
    """The parameters, as an object's also where they don't say so: no other value is a call's arguments."""
    schema = {"type": "object"} | (function.parameters or {})
    if not _is_objects(schema):
        raise refused(f"the parameters of {function.name!r} have the type {schema['type']!r}, not 'object'", "tools")
    return schema


def _is_objects(schema: dict[str, Any]) -> bool:
    return schema.get("type", "object") in ("object", ["object"])
