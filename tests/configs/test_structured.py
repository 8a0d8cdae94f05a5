"""What a structured output may be: exactly one kind, within bounds, with nothing that would not be enforced."""

from __future__ import annotations

from typing import Any

import pytest

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
