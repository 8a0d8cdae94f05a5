"""What a structured output may be: exactly one kind, within bounds, with nothing that would not be enforced."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from penstock.configs.json_strings import pattern_of_length
from penstock.configs.regex_classes import fitting
from penstock.configs.sampling import SamplingParams
from penstock.configs.structured import GrammarLimits, StructuredOutputsParams, problem_of
from penstock.errors import RequestError

SCHEMA: dict[str, Any] = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"enum": ["é"]}}}


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ({"json": SCHEMA}, 'json\n{"type":"object","properties":{"b":{"type":"integer"},"a":{"enum":["é"]}}}'),
        ({"json": ' {"type" : "null"}'}, 'json\n{"type":"null"}'),
        ({"json": True}, "json\ntrue"),
        ({"json_object": True}, "json_object\n"),
        ({"json_object": False, "regex": "a+"}, "regex\na+"),
        ({"choice": ["yes", "no\n"]}, 'choice\n["yes", "no\\n"]'),
        ({"grammar": 'root ::= "a"'}, 'grammar\nroot ::= "a"'),
        ({"structural_tag": '{"type":"x"}'}, 'structural_tag\n{"type":"x"}'),
    ],
)
def test_a_kind_and_its_text_become_one_spec(given: dict[str, Any], spec: str) -> None:
    assert StructuredOutputsParams(**given).spec == spec
    assert problem_of(spec) is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["nothing", "exactly one"]),
        ({"json": SCHEMA, "regex": "a"}, ["json, regex", "exactly one"]),
        ({"json_object": False}, ["nothing"]),
        ({"json": "{"}, ["json", "not JSON"]),
        ({"json": "[1]"}, ["list", "schema belongs"]),
        ({"json": '{"minimum": NaN}'}, ["NaN"]),
        ({"json": {"minimum": float("inf")}}, ["not JSON"]),
        ({"json": {"const": object()}}, ["object"]),
        ({"json": '{"const": "\\ud800"}'}, ["half a character"]),
        ({"json": '{"not": ' * 5000 + "{}" + "}" * 5000}, ["nested"]),
        ({"json": {"enum": ["x" * (1 << 16)]}}, ["65", "65536"]),
        ({"json": {"items": {"uniqueItems": True}}}, ["uniqueItems"]),
        ({"json": {"items": {"anyOf": []}}}, ["'anyOf' with nothing in it"]),
        ({"json": {"enum": []}}, ["'enum' with nothing in it"]),
        ({"json": {"properties": {"not": {"type": "wrong", "not": {}}}}}, ["'not'"]),
        ({"json": {"allOf": [{}, {}]}}, ["allOf", "2"]),
        ({"json": {"type": "number", "multipleOf": 0.5}}, ["multipleOf"]),
        ({"json": {"type": "string", "pattern": "a", "maxLength": 3}}, ["pattern"]),
        ({"json": {"$ref": "http://x/y"}}, ["http://x/y"]),
        ({"regex": ""}, ["regex", "not empty"]),
        ({"regex": "(" * 65 + ")" * 65}, ["65", "64"]),
        ({"choice": []}, ["choice"]),
        ({"choice": ["a", ""]}, ["choice"]),
        ({"choice": ["a"] * 5000}, ["5000", "4096"]),
        ({"grammar": "|" * 5000}, ["5001", "4096"]),
    ],
)
def test_anything_else_is_refused_with_the_value_and_the_limit(given: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RequestError) as caught:
        StructuredOutputsParams(**given)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert len(str(caught.value)) < 300


REF: dict[str, Any] = {"$ref": "#/$defs/S", "$defs": {"S": {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({**REF, "maxLength": 2}, "'maxLength' beside '$ref'"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "maxLength": 3}, "'maxLength' beside 'anyOf'"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}], "type": "string"}, "'type' beside 'anyOf'"),
        ({"oneOf": [{"required": ["a"]}], "properties": {"a": {}}}, "'properties' beside 'oneOf'"),
        ({"allOf": [REF], "required": ["a"]}, "'required' beside 'allOf'"),
        ({"allOf": []}, "'allOf' with 0"),
        ({"enum": ["a", 1], "type": "string"}, "'type' beside 'enum'"),
        ({"const": True, "type": "integer"}, "'type' beside 'const'"),
        ({"enum": ["a", "abc"], "maxLength": 1}, "'maxLength' beside 'enum'"),
        ({"minLength": 3}, "'minLength' without a type"),
        ({"type": [], "maximum": 3}, "'type' without a type"),
        ({"properties": {"a": {}}, "required": ["a", "b"]}, "requires 'b'"),
        ({"type": "object", "required": ["b"]}, "requires 'b'"),
        ({"type": "object", "properties": {"ab": {}}, "propertyNames": {"maxLength": 1}}, "'propertyNames'"),
        ({"type": "object", "additionalProperties": False, "propertyNames": {"maxLength": 1}}, "'propertyNames'"),
        (
            {"properties": {"a": {}}, "patternProperties": {"^z": {}}, "additionalProperties": True},
            "'patternProperties' beside 'properties' and 'additionalProperties'",
        ),
        ({"type": "integer", "multipleOf": 2, "exclusiveMinimum": 0}, "'multipleOf' together with 'exclusiveMinimum'"),
        ({"type": "integer", "multipleOf": 1.5}, "'multipleOf' 1.5"),
        ({"type": "object", "patternProperties": {"^x": {}, "y$": {}}}, "several 'patternProperties'"),
        ({"type": "object", "patternProperties": {"^(x)": {}, "^ab?": {}}}, "several 'patternProperties'"),
        ({"type": "object", "patternProperties": {"^x": {}}, "properties": {"xy": {}}}, "may match 'xy'"),
        ({"type": "string", "format": "date", "maxLength": 3}, "'format' together with a length"),
        ({"type": "string", "format": "json-pointer", "minLength": 1}, "'format' together with a length"),
        ({"type": "string", "format": "date", "pattern": "^2024"}, "'pattern' together with 'format'"),
        ({"type": "string", "pattern": "(^a|b)c"}, "'^' in the middle"),
        ({"type": "string", "pattern": "^(?!x)y"}, "looks ahead"),
        ({"type": "object", "patternProperties": {"a(?=b)": {}}}, "looks ahead"),
        ({"type": "string", "pattern": '"'}, "needs an escape in JSON"),
        ({"type": "string", "pattern": r"^[\n]$"}, "needs an escape in JSON"),
        ({"type": "string", "pattern": '["]'}, "needs no escape in JSON"),
        ({"type": "string", "pattern": r"^[\1a]$"}, "needs no escape in JSON"),
    ],
)
def test_what_stands_where_nothing_enforces_it_is_refused_by_name(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        StructuredOutputsParams(json={"type": "array", "items": {**schema, "$defs": {}}, "$defs": REF["$defs"]})
    assert words in str(caught.value)


def test_a_reference_is_followed_wherever_it_leads() -> None:
    with pytest.raises(RequestError, match="'not'"):
        StructuredOutputsParams(json={"$ref": "#/shapes/a", "shapes": {"a": {"items": {"$ref": "#"}, "not": {}}}})


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "A"},
        {**REF, "description": "a reference", "default": "x"},
        {**REF, "type": "string"},
        {"allOf": [REF], "title": "A"},
        {"const": "x", "type": "string", "title": "A", "default": "x"},
        {"enum": ["x", None], "type": ["string", "null"], "description": "two"},
        {"enum": [1, 2.0], "type": "integer"},
        {"type": "object", "anyOf": [{"type": "object", "properties": {"a": {}}, "required": ["a"]}]},
        {"type": "string", "format": "binary", "maxLength": 3},
        {"type": "string", "pattern": r"^[(?=]\(?=(?:a)$"},
        {"type": "string", "format": "uri", "minLength": 1},
        {"type": "object", "additionalProperties": {"type": "integer"}, "propertyNames": {"pattern": "^[a-c]$"}},
        {"type": "object", "patternProperties": {"^x-|^xb": {}, "^ab?$": {}}, "properties": {"xa": {}, "b": {}}},
        {"type": "integer", "maxLength": 3, "x-order": 1, "examples": [1], "deprecated": True},
    ],
)
def test_annotations_and_what_is_implied_may_stand_anywhere(schema: dict[str, Any]) -> None:
    StructuredOutputsParams(json={**schema, "$defs": REF["$defs"]})


@pytest.mark.parametrize(
    ("regex", "words"),
    [
        (r"\Aa", r"\A"),
        (r"a\Z", r"\Z"),
        (r"[\h]", r"\h"),
        (r"\²", r"\²"),
        ("a$b", "'$' in the middle"),
        ("(a|^b)", "'^'"),
    ],
)
def test_a_regex_that_would_be_misread_is_refused(regex: str, words: str) -> None:
    tag = {"type": "structural_tag", "format": {"type": "regex", "pattern": regex}}
    cases: list[dict[str, Any]] = [{"regex": regex}, {"structural_tag": json.dumps(tag)}]
    for given in cases:
        with pytest.raises(RequestError, match=re.escape(words)):
            StructuredOutputsParams(**given)


def test_anchors_at_the_ends_and_what_looks_like_one_are_fine() -> None:
    for regex in ("^yes$|^no$", r"[$^]\$\^a", r"^\w+\d\x41\u00e9$", "[^$]|[[]$"):
        StructuredOutputsParams(regex=regex)


def test_what_a_tag_excludes_is_refused_beside_what_a_string_must_be() -> None:
    content: dict[str, Any] = {"type": "json_schema", "json_schema": {"type": "array", "items": {"type": "string"}}}
    tag = {"type": "structural_tag", "format": content | {"excludes": ["</call>"]}}
    StructuredOutputsParams(structural_tag=json.dumps(tag))
    content["json_schema"]["items"]["pattern"] = "^a"
    with pytest.raises(RequestError, match="'excludes' and its schema 'pattern'"):
        StructuredOutputsParams(structural_tag=json.dumps(tag))


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    StructuredOutputsParams(json={"properties": {"not": {"type": "integer"}, "uniqueItems": {"const": {"if": 1}}}})


def test_brackets_in_quotes_and_behind_backslashes_are_text() -> None:
    assert problem_of("regex\n" + r"\(\[\{" * 100) is None
    assert problem_of("grammar\nroot ::= " + '"((\\"" ' * 100) is None


def test_limits_can_be_set() -> None:
    limits = GrammarLimits(max_bytes=20, max_depth=1, max_alternatives=2)
    assert "21" in (problem_of("regex\n" + "a" * 21, limits) or "")
    assert "nested 2" in (problem_of('json\n{"a":{"b":1}}', limits) or "")
    assert "3 alternatives" in (problem_of("regex\na|b|c", limits) or "")


def test_sampling_params_take_the_object_or_a_mapping() -> None:
    params = SamplingParams(structured_outputs={"regex": "a"})
    assert params.structured_outputs == StructuredOutputsParams(regex="a")
    params.structured_outputs = StructuredOutputsParams(json_object=True)
    for wrong in ({"regex": "a", "choice": ["b"]}, {"regexp": "a"}, 7):
        with pytest.raises(RequestError, match="structured_outputs"):
            SamplingParams(structured_outputs=wrong)
        with pytest.raises(RequestError, match="structured_outputs"):
            params.structured_outputs = wrong  # type: ignore[assignment]
    assert params.structured_outputs == StructuredOutputsParams(json_object=True)


def test_a_text_of_a_length_is_of_all_characters_that_stand_in_json_as_they_are() -> None:
    assert fitting(str(pattern_of_length(1, 1)).removesuffix("{1,1}")) == fitting("[^]")
