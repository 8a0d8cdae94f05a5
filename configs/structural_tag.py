"""What xgrammar's structural tags hold: JSON schemas and regular expressions, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from json import dumps, loads

from .json_schema import make_patterns_whole, problem_of_schema, string_keyword_of
from .regex import as_meant, problem_of_regex

_WITH_SCHEMA = ("json_schema", "qwen_xml_parameter")


def problem_of_tag(tag: object) -> str | None:
    """The first thing in a tag that nothing would hold the text to, in words."""
    for each in _formats_in(tag):
        if (problem := _problem_of_content(each) if _has_schema(each) else None) is not None:
            return problem
        pattern = each.get("pattern") if each.get("type") == "regex" else None
        if isinstance(pattern, str) and (problem := problem_of_regex(pattern)) is not None:
            return problem
    return None


def _problem_of_content(node: dict[str, object]) -> str | None:
    schema = node["json_schema"]
    if node.get("excludes") and (keyword := string_keyword_of(schema)) is not None:
        return f"the structural_tag uses 'excludes' and its schema {keyword!r}; only one of the two can be enforced"
    return problem_of_schema(schema)


def tag_with_whole_patterns(text: str) -> str:
    """A tag whose schemas have patterns for whole texts, as grammars read them, and whose expressions are as meant."""
    tag = loads(text)
    for each in _formats_in(tag):
        if _has_schema(each):
            make_patterns_whole(each["json_schema"], _is_json(each))
        elif each.get("type") == "regex" and isinstance(pattern := each.get("pattern"), str):
            each["pattern"] = as_meant(pattern)
    return dumps(tag, ensure_ascii=False)


def _formats_in(tag: object) -> Iterator[dict[str, object]]:
    """Every object in a tag, but none in a schema."""
    todo = [tag]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            yield node
            todo += [each for name, each in node.items() if not (name == "json_schema" and _has_schema(node))]
        elif isinstance(node, list):
            todo += node


def _is_json(node: dict[str, object]) -> bool:
    """Whether a schema's texts are JSON, and not some model's XML."""
    return node["type"] == "json_schema" and node.get("style", "json") == "json"


def _has_schema(node: dict[str, object]) -> bool:
    return node.get("type") in _WITH_SCHEMA and "json_schema" in node
