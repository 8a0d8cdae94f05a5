"""What the grammars of schemas take: of those that pydantic and OpenAI's client write, and of patterns that search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal

import pytest
from openai import pydantic_function_tool
from pydantic import BaseModel, Field

from penstock.configs.structured import StructuredOutputsParams
from penstock.model.grammar_compiler import GrammarCompiler

from .grammar_rig import demo_compiler, takes


@cache
def compiler() -> GrammarCompiler:
    return demo_compiler()


@pytest.fixture(scope="module", autouse=True)
def _let_go() -> Iterator[None]:
    """Its threads end before the interpreter does."""
    yield
    compiler.cache_clear()


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Part(BaseModel):
    """A part of a thing."""

    kind: Literal["part"] = "part"
    size: int = Field(ge=0, le=5, description="its size")


class Thing(BaseModel):
    """A thing with all that is usual."""

    part: Part = Field(description="the main one")
    colour: Colour = Colour.RED
    name: Annotated[str, Field(min_length=1, max_length=3)] | None = None
    code: str = Field(pattern="^[a-z]+$")
    other: Part | None = Field(default=None, description="another one")
    by_colour: dict[Colour, int]


def allows(text: str, **given: Any) -> bool:
    return takes(compiler(), StructuredOutputsParams(**given).spec, text)


def test_pydantic_and_openai_schemas_hold_the_text() -> None:
    good = Thing(part=Part(size=3), name="ab", code="xy", by_colour={Colour.BLUE: 2}).model_dump(mode="json")
    parameters = pydantic_function_tool(Thing)["function"]["parameters"]
    for schema in (Thing.model_json_schema(), parameters):
        assert allows(json.dumps(good), json=schema)
        for wrong in ({"name": "abcd"}, {"colour": "green"}, {"part": {"kind": "part", "size": 6}}, {"code": "x1"}):
            assert not allows(json.dumps({**good, **wrong}), json=schema), wrong


@pytest.mark.parametrize(
    ("pattern", "found", "missed"),
    [
        ("foo", ["foo", "a foo!"], ["fo"]),
        ("^[A-Z]", ["A", "Abc"], ["aA"]),
        ("é$", ["é", "café"], ["éa"]),
        ("^a$|^b$", ["a", "b"], ["ab"]),
        ("^(a|b)$|c", ["a", "b", "xcx"], ["ab"]),
        (r"^\$[^|]{2}$", ["$ab"], ["$a|"]),
    ],
)
def test_a_pattern_searches(pattern: str, found: list[str], missed: list[str]) -> None:
    value = {"type": "string", "pattern": pattern}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": value}}
    for text in [*found, *missed]:
        quoted = json.dumps(text, ensure_ascii=False)
        assert allows(quoted, json=value) == (text in found), text
        assert allows(quoted, structural_tag=json.dumps(tag)) == (text in found), text
        named = {"type": "object", "patternProperties": {pattern: {"type": "null"}}}
        assert allows(f"{{{quoted}: null}}", json=named) == (text in found), text


@pytest.mark.parametrize(
    ("pattern", "prefix"),
    [
        ("é", "é"),
        ("^é.$", "é"),
        ("^é[^x]$", "é"),
        (r"^é\S$", "é"),
        (r"^[é-ñ]\W$", "é"),
        ("^é[ -~]$", "é"),
        (r"^é[\s\S]$", "é"),
        ("^(a|.){1,200}$", ""),
        ("^[^x]$", ""),
    ],
)
def test_what_a_pattern_matches_stands_in_json_as_it_is(pattern: str, prefix: str) -> None:
    value = {"type": "string", "pattern": pattern}
    assert allows(f'"{prefix}~"', json=value)
    for wrong in ('"', "\\", "\t", "\n", "\x01"):
        assert not allows(f'"{prefix}{wrong}"', json=value), wrong


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "minLength": 1}, '"%s"'),
        ({"type": ["string", "null"], "maxLength": 2}, '"%s"'),
        ({"type": "string", "minLength": 1, "maxLength": 1}, '"%s"'),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, '{"%s": 1}'),
        ({"type": "string", "format": "json-pointer"}, '"/%s"'),
        ({"type": "string", "format": "relative-json-pointer"}, '"0/%s"'),
        ({"type": "string", "format": "email", "minLength": 1}, '"%s@a.b"'),
    ],
)
def test_no_string_takes_in_what_needs_an_escape(schema: dict[str, Any], text: str) -> None:
    assert allows(text % "x", json=schema)
    for wrong in ('"', "\\", "\t", "\x01", '\\"\\q\\"'):
        assert not allows(text % wrong, json=schema), wrong


def test_a_length_counts_characters_and_long_ones_compile_at_once() -> None:
    schema = {"type": "string", "minLength": 2, "maxLength": 3}
    assert [allows(f'"{text}"', json=schema) for text in ("a", "é😀", "abc", "abcd")] == [False, True, True, False]
    for long in ({"minLength": 2}, {"minLength": 2, "maxLength": 1 << 40}, {"minLength": 2, "maxLength": 20000}):
        assert allows(f'"{"a" * 2000}"', json={"type": "string"} | long)
        assert not allows('"a"', json={"type": "string"} | long)
    with pytest.raises(ValueError, match="not exceeding 2147483647"):
        compiler().compile(StructuredOutputsParams(json={"type": "string", "minLength": 4294967297}).spec)


@pytest.mark.parametrize(
    ("expression", "taken", "refused"),
    [
        (r"\x41b", ["Ab"], ["\u041b"]),
        (r"[\x41b]+", ["A", "b"], ["\u041b"]),
        (r"[\^a]", ["^", "a"], ["b"]),
        (r"[\^-b]", ["^", "a", "b"], ["c"]),
        (r"[\^]", ["^"], ["a"]),
        (r"[^\^a]", ["b", "\n"], ["^", "a"]),
        ("[À-ÿA-Za-z]", ["é", "A", "z"], ["-", "Œ", "Ѐ"]),
        ("[éèa-z]", ["é", "a", "m"], ["-", "ş"]),
        ("[äöü0-9]", ["ä", "0", "5"], ["-", "a"]),
        ("[^ -/]", ["a", "é"], [" ", "-"]),
    ],
)
def test_an_expression_is_read_as_it_is_written(expression: str, taken: list[str], refused: list[str]) -> None:
    tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": expression}}
    large = {"type": "string", "pattern": f"^({expression}|é){{1,200}}$"}
    for text in [*taken, *refused]:
        assert allows(text, regex=expression) == (text in taken), text
        assert allows(text, structural_tag=json.dumps(tag)) == (text in taken), text
        assert allows(f'"{text}"', json=large) == (text in taken and text != "\n"), text


def test_a_class_with_what_is_no_character_is_left_as_it_is() -> None:
    assert allows("\b", regex=r"[\ba]")
    assert allows("\x01", regex=r"[\cA]")
    assert allows("\x01", regex=r"[\x01]")


@pytest.mark.parametrize("value", [{"maxLength": 4}, {"pattern": "^a.*c$"}, {"pattern": "é"}], ids=str)
def test_strings_outside_of_json_take_in_what_would_need_an_escape_there(value: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"x": {"type": "string"} | value}, "required": ["x"]}
    tag = {"type": "structural_tag", "format": {"type": "json_schema", "style": "qwen_xml", "json_schema": schema}}
    text = {"maxLength": '"\n"'}.get(next(iter(value)), 'aé"\nc')
    assert allows(f"<parameter=x>{text}</parameter>", structural_tag=json.dumps(tag))


def test_a_constant_is_no_schema() -> None:
    value = {"pattern": "a"}
    assert allows('{"pattern":"a"}', json={"const": value, "default": value})
