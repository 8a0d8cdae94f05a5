"""A response format beside tools: the grammar takes a call or what the format says, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.model.grammar_compiler import GrammarCompiler

from ...model.grammar_rig import demo_compiler, takes
from .served import CHAT, HELLO
from .test_chat import CALL, JSON_SCHEMA, TIME, WEATHER, says


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return demo_compiler()


@pytest.mark.parametrize("response_format", [JSON_SCHEMA, {"type": "json_object"}])
@pytest.mark.parametrize("asked", [{}, {"tool_choice": "auto", "parallel_tool_calls": False}])
def test_beside_tools_to_choose_from_a_response_format_leaves_the_choice(
    compiler: GrammarCompiler, response_format: dict[str, Any], asked: dict[str, Any]
) -> None:
    served = says(CALL)
    served.ask(CHAT, messages=HELLO, tools=[WEATHER, TIME], response_format=response_format, **asked)
    grammar = served.engine.requests[0].sampling.grammar
    json_texts = ['{"a": 1}'] if response_format is JSON_SCHEMA else ["{}", '{"b": [1]}']
    for text in [CALL, *json_texts]:
        assert takes(compiler, grammar, text), text
    two_calls = f"{CALL}\n{CALL}"
    assert takes(compiler, grammar, two_calls) == (not asked)
    for text in ("Well.", f"Well.{CALL}", CALL.replace("get_weather", "get_money"), f"{json_texts[0]}{CALL}"):
        assert not takes(compiler, grammar, text), text


@pytest.mark.parametrize("parameters", [{"type": "object", "not": {}}, {"type": "string"}, {"type": "object"}])
def test_a_call_that_nobody_forces_may_have_parameters_that_no_grammar_holds(
    compiler: GrammarCompiler, parameters: dict[str, Any]
) -> None:
    served = says(CALL)
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}
    served.ask(CHAT, messages=HELLO, tools=[tool], response_format=JSON_SCHEMA)
    assert takes(compiler, served.engine.requests[0].sampling.grammar, CALL)
