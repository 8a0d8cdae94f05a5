"""Which JSON schemas a grammar holds a text to, keyword by keyword: what would be dropped silently is refused by name.

xgrammar reads one leading keyword of a schema (`$ref`, `enum`, ...) and drops the constraints beside it, and those that
belong to a type where no type is given. A keyword that nobody knows is an annotation, as JSON Schema has it. A `oneOf`
is taken as an `anyOf`, an object without `additionalProperties` as one that has none.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from json import dumps, loads
from urllib.parse import unquote

from .json_strings import pattern_of_format, pattern_of_length
from .regex import beginnings, problem_of_pattern, searching
from .regex_classes import respelled, spelled

Node = dict[str, object]

_NOT_ENFORCED = {  # keywords that no grammar here can hold the text to
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "$dynamicRef"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties"),
}
_LEADS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")  # nothing beside one of them is read
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OF_STRINGS = ("minLength", "maxLength", "pattern", "format")
_UNTYPED = (  # not read without a type
    *(*_OF_STRINGS, *_BOUNDS, "multipleOf"),
    *("minItems", "maxItems", "patternProperties", "propertyNames", "required", "minProperties", "maxProperties"),
)
_SHOW_A_TYPE = {
    **dict.fromkeys(("properties", "additionalProperties", "unevaluatedProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "unevaluatedItems"), "array"),
}
_CONSTRAINTS = (*_UNTYPED, "properties", "additionalProperties", "items", "prefixItems")
_FORMATS = {  # the others are annotations
    *("email", "date", "time", "date-time", "duration", "ipv4", "ipv6", "hostname", "uuid", "uri", "uri-reference"),
    *("uri-template", "json-pointer", "relative-json-pointer"),
}
_MAY_BE_EMPTY = ("uri-reference", "uri-template", "json-pointer")  # the other formats imply a minLength of 1
_OF_NAMES = ("properties", "patternProperties", "$defs", "definitions")  # hold schemas by name
_OF_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_ONE = ("items", "additionalProperties", "propertyNames")
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "null": type(None),
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
}


def problem_of_schema(schema: object) -> str | None:
    """The first keyword that nothing would hold the text to, in words."""
    of_names = set[int]()  # schemas of properties' names, which are strings without saying so
    for node in _schemas_of(schema):
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            return f"the json holds a {type(node).__name__} where a schema belongs"
        of_names.add(id(node.get("propertyNames")))
        if (problem := _problem_of_node(node, schema, "string" if id(node) in of_names else None)) is not None:
            return problem
    return None


def string_keyword_of(schema: object) -> str | None:
    """The first keyword in a schema that says what its strings must be, if any does."""
    nodes = [node for node in _schemas_of(schema) if isinstance(node, dict)]
    return next((keyword for node in nodes for keyword in _OF_STRINGS if _uses(node, keyword)), None)


def with_whole_patterns(text: str) -> str:
    """A schema with patterns for whole texts, as grammars read them, where JSON Schema searches or counts."""
    schema = loads(text)
    make_patterns_whole(schema)
    return dumps(schema, ensure_ascii=False)


def make_patterns_whole(schema: object, in_json: bool = True) -> None:
    """The same in place. Not `in_json`, strings need no escapes, and xgrammar's own lengths and formats are right."""
    spell = spelled if in_json else respelled
    for node in [node for node in _schemas_of(schema) if isinstance(node, dict)]:
        if isinstance(pattern := node.get("pattern"), str):
            node["pattern"] = searching(pattern, spell)
        elif in_json and (pattern := _pattern_for(node)) is not None:
            node["pattern"] = pattern
            for keyword in ("format", "minLength", "maxLength"):
                node.pop(keyword, None)
        if isinstance(named := node.get("patternProperties"), dict):
            node["patternProperties"] = {searching(pattern, spell): each for pattern, each in named.items()}


def _pattern_for(node: Node) -> str | None:
    """What stands for a schema's format or its length, of which it has one at most; None where it stays as it is."""
    if _uses(node, "format"):
        return pattern_of_format(str(node["format"]))
    return pattern_of_length(node.get("minLength", 0), node.get("maxLength", sys.maxsize))


def _schemas_of(schema: object) -> Iterator[object]:
    """Every schema in a schema, each once: itself, those within, and those that a `$ref` leads to."""
    todo, seen = [schema], set[int]()
    while todo:
        node = todo.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            todo += _subschemas(node, schema) if isinstance(node, dict) else ()


def _subschemas(node: Node, root: object) -> Iterator[object]:
    for keyword in _OF_NAMES:
        if isinstance(named := node.get(keyword), dict):
            yield from named.values()
    for keyword in _OF_LISTS:
        if isinstance(listed := node.get(keyword), list):
            yield from listed
    yield from (node[keyword] for keyword in _OF_ONE if keyword in node)
    if (target := _target(node, root)) is not None:
        yield target


def _target(node: Node, root: object) -> object:
    """What a node's `$ref` leads to; None where there is none, which the compiler says."""
    found, reference = root, node.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    for part in reference.split("/")[1:]:
        found = found.get(unquote(part).replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _problem_of_node(node: Node, root: object, implied: str | None) -> str | None:
    for keyword in sorted(_NOT_ENFORCED & node.keys()):
        if node[keyword] is not False:
            return f"the json uses {keyword!r}, which can't be enforced"
    reference = node.get("$ref", "#")
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return f"the json refers to {str(reference)[:64]!r}; a $ref must stay within the schema and begin with '#/'"
    lead = next((keyword for keyword in _LEADS if keyword in node), None)
    return _problem_of_led(node, lead, root) if lead is not None else _problem_of_typed(node, implied)


def _problem_of_led(node: Node, lead: str, root: object) -> str | None:
    branches = node.get("allOf", [{}])
    if isinstance(branches, list) and len(branches) != 1:
        return f"the json uses 'allOf' with {len(branches)} schemas; only one can be enforced"
    if node[lead] == []:
        return f"the json uses {lead!r} with nothing in it, which no text can hold to"
    for keyword in (*_LEADS, *_CONSTRAINTS):
        if keyword != lead and _uses(node, keyword):
            return f"the json uses {keyword!r} beside {lead!r}, where it can't be enforced"
    if "type" in node and not _has_type(node, lead, root):
        return f"the json uses 'type' beside {lead!r}, which allows other types: it can't be enforced there"
    return None


def _has_type(node: Node, lead: str, root: object) -> bool:
    """Whether all that the leading keyword allows is of the node's own type, as far as one look tells."""
    own, led = _types(node), node[lead]
    if lead in ("const", "enum"):
        values = led if lead == "enum" and isinstance(led, list) else [led]
        return all(any(_is_of(value, name) for name in own) for value in values)
    branches = led if isinstance(led, list) else [node]
    targets = [_target(each, root) if isinstance(each, dict) and "$ref" in each else each for each in branches]
    return all(isinstance(each, dict) and _types(each) and _types(each) <= own for each in targets)


def _problem_of_typed(node: Node, implied: str | None) -> str | None:
    types = _types(node) or {implied}
    loose = next((keyword for keyword in ("type", *_UNTYPED) if _uses(node, keyword)), None)
    if types == {None} and loose is not None:
        return f"the json uses {loose!r} without a type, where it can't be enforced"
    if (problem := _problem_of_multiples(node)) is not None:
        return problem
    if "string" in types and (problem := _problem_of_string(node)) is not None:
        return problem
    return _problem_of_object(node) if "object" in types else None


def _problem_of_multiples(node: Node) -> str | None:
    if "multipleOf" not in node:
        return None
    if node.get("type") != "integer":
        return "the json uses 'multipleOf', which can be enforced for the type 'integer' alone"
    if not _is_of(factor := node["multipleOf"], "integer"):
        return f"the json uses 'multipleOf' {str(factor)[:64]}; only that of a whole number can be enforced"
    if (bound := next((keyword for keyword in _BOUNDS if keyword in node), None)) is not None:
        return f"the json uses 'multipleOf' together with {bound!r}; only one of the two can be enforced"
    return None


def _problem_of_string(node: Node) -> str | None:
    held = [repr(keyword) for keyword in ("pattern", "format") if _uses(node, keyword)]
    shortest = 1 if held == ["'format'"] and node["format"] not in _MAY_BE_EMPTY else 0  # of itself
    held += ["a length"] if "maxLength" in node or node.get("minLength", 0) not in range(shortest + 1) else []
    if len(held) > 1:
        return f"the json uses {held[0]} together with {held[1]}; only one of the two can be enforced"
    pattern = node.get("pattern")
    return problem_of_pattern(pattern) if isinstance(pattern, str) else None


def _problem_of_object(node: Node) -> str | None:
    named, patterns, required = (node.get(key) for key in ("properties", "patternProperties", "required"))
    if isinstance(required, list):
        for name in map(str, required):
            if not isinstance(named, dict) or name not in named:
                return f"the json requires {name[:64]!r}, which isn't among its 'properties': it can't be enforced"
    if "propertyNames" in node and (named or patterns):
        return "the json uses 'propertyNames' beside named properties, where it can't be enforced"
    if "propertyNames" in node and False in (node.get("additionalProperties"), node.get("unevaluatedProperties")):
        return "the json uses 'propertyNames' where no property is allowed, which can't be enforced"
    if named and patterns and node.get("additionalProperties", False) is not False:
        return "the json uses 'patternProperties' beside 'properties' and 'additionalProperties', which takes any name"
    names = list(named) if isinstance(named, dict) else []
    return _problem_of_patterns(list(patterns), names) if isinstance(patterns, dict) else None


def _problem_of_patterns(patterns: list[str], names: list[str]) -> str | None:
    """Of a property that two of them may match, or one and a name, only one's schema would be enforced."""
    for pattern in patterns:
        if (problem := problem_of_pattern(pattern)) is not None:
            return problem
    heads = sorted(head for pattern in patterns for head in beginnings(pattern))
    if any(after.startswith(head) for head, after in pairwise(heads)):
        return "the json uses several 'patternProperties' that one name may match; only one can be enforced"
    if (name := next((name for name in names if name.startswith(tuple(heads))), None)) is not None:
        return f"the json uses 'patternProperties' that may match {name[:64]!r}, one of its 'properties' as well"
    return None


def _uses(node: Node, keyword: str) -> bool:
    """Whether a node has a keyword that constrains; a format that nobody knows is an annotation."""
    return keyword in node and (keyword != "format" or str(node[keyword]) in _FORMATS)


def _types(node: Node) -> set[str | None]:
    """The types that a node names, or shows by a keyword; a number may be an integer."""
    if "type" not in node:
        return {name for keyword, name in _SHOW_A_TYPE.items() if keyword in node}
    given = node["type"]
    names: set[str | None] = set(map(str, given)) if isinstance(given, list) else {str(given)}
    return names | ({"integer"} if "number" in names else set())


def _is_of(value: object, type_name: str | None) -> bool:
    if isinstance(value, bool) and type_name != "boolean":
        return False
    if type_name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _PYTHON_TYPES.get(type_name or "", object))
