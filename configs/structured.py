"""What a completion's text must be, with vLLM's names, and the bounds that hold for every such grammar.

Checked here is what can be checked without compiling: that exactly one kind is given, that JSON is JSON, sizes, depth,
and that nothing in a schema or a regular expression would silently not be enforced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from json import dumps, loads
from typing import NoReturn

from ..errors import RequestError
from .json_schema import problem_of_schema
from .regex import problem_of_regex
from .structural_tag import problem_of_tag

KINDS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
_QUOTED = re.compile(r'\\.|"(?:\\.|[^"\\])*"', re.DOTALL)  # brackets that are text


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """How much a grammar may be, before anybody compiles it."""

    max_bytes: int = 1 << 16
    max_depth: int = 64  # brackets within brackets
    max_alternatives: int = 4096  # choices, list items and properties together


LIMITS = GrammarLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """Exactly one of the kinds; raises RequestError otherwise, and for what is beyond `LIMITS`."""

    json: Mapping[str, object] | str | bool | None = None  # a JSON schema
    json_object: bool | None = None  # True: any JSON object
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None  # in EBNF, from the rule `root`
    structural_tag: str | None = None  # xgrammar's form for schemas between tags, as JSON text
    spec: str = field(init=False, repr=False, compare=False)  # the kind and its text, in the one form that engines take

    def __post_init__(self) -> None:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if self.json_object is False:
            given.remove("json_object")
        if len(given) != 1:
            names = ", ".join(given) or "nothing"
            raise RequestError(f"structured_outputs holds {names}; it takes exactly one of {', '.join(KINDS)}")
        kind = given[0]
        spec = f"{kind}\n{_text(kind, getattr(self, kind))}"
        if (problem := problem_of(spec)) is not None:
            raise RequestError(f"structured_outputs: {problem}")
        object.__setattr__(self, "spec", spec)

    @classmethod
    def from_any(cls, value: object) -> StructuredOutputsParams | None:
        """The value itself, or one made from a mapping of names. Raises RequestError."""
        if value is None or isinstance(value, StructuredOutputsParams):
            return value
        if not isinstance(value, Mapping):
            raise RequestError(f"structured_outputs is a {type(value).__name__}; it may be a mapping of names")
        if unknown := sorted(str(name) for name in value if name not in KINDS):
            raise RequestError(f"structured_outputs holds {unknown[0]!r}; it takes exactly one of {', '.join(KINDS)}")
        return cls(**{str(name): each for name, each in value.items()})


def split_spec(spec: str) -> tuple[str, str]:
    """The kind and the text of a spec."""
    kind, _, text = spec.partition("\n")
    return kind, text


def problem_of(spec: str, limits: GrammarLimits = LIMITS) -> str | None:
    """Why a spec is not even to be compiled, in words; None when it may be."""
    kind, text = split_spec(spec)
    if kind not in KINDS:
        return f"{kind[:32]!r} is no kind of grammar; known are {', '.join(KINDS)}"
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        return f"the {kind} holds half a character, {text[error.start]!r}"
    if num_bytes > limits.max_bytes:
        return f"the {kind} has {num_bytes} bytes, at most {limits.max_bytes} are allowed"
    if kind == "json_object":
        return None
    if kind in ("regex", "grammar"):
        problem = _problem_of_text(kind, text, limits)
        return problem_of_regex(text) if problem is None and kind == "regex" else problem
    try:
        value = loads(text)
    except RecursionError:
        return f"the {kind} is nested more than {limits.max_depth} deep"
    except ValueError as error:
        return f"the {kind} is not JSON: {error}"
    if (problem := _problem_of_size(kind, value, limits)) is not None:
        return problem
    if kind == "json":
        return problem_of_schema(value)
    return problem_of_tag(value) if kind == "structural_tag" else None


def _text(kind: str, value: object) -> str:
    if kind == "json":
        return _canonical(value)
    if kind == "json_object":
        if value is not True:
            raise RequestError(f"structured_outputs.json_object is {value!r}; it may be True")
        return ""
    if kind == "choice":
        if not isinstance(value, list | tuple) or not value or not all(isinstance(x, str) and x for x in value):
            raise RequestError("structured_outputs.choice is a list of texts, at least one and none of them empty")
        return dumps(list(value), ensure_ascii=False)
    if not isinstance(value, str) or not value:
        raise RequestError(f"structured_outputs.{kind} is {str(value)[:64]!r}; it must be a text that is not empty")
    return value


def _canonical(schema: object) -> str:
    """The schema as text, its order kept, so that equal ones look equal."""
    if not isinstance(schema, str | Mapping | bool):
        raise RequestError(f"structured_outputs.json is a {type(schema).__name__}; it may be a mapping or JSON text")
    if isinstance(schema, str) and len(schema) > LIMITS.max_bytes:
        raise RequestError(
            f"structured_outputs: the json has {len(schema)} bytes, at most {LIMITS.max_bytes} are allowed"
        )
    try:
        value = loads(schema, parse_constant=_refuse_constant) if isinstance(schema, str) else schema
        return dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_as_dict)
    except RecursionError:
        raise RequestError(f"structured_outputs.json is nested more than {LIMITS.max_depth} deep") from None
    except (ValueError, TypeError) as error:
        raise RequestError(f"structured_outputs.json is not JSON: {error}") from None


def _as_dict(value: object) -> dict[object, object]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} has no form in JSON")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _problem_of_text(kind: str, text: str, limits: GrammarLimits) -> str | None:
    """Depth and alternatives by their characters; what stands in quotes or behind a backslash is text."""
    depth = deepest = 0
    bare = _QUOTED.sub("", text)
    for character in bare:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return _problem_of_extent(kind, deepest, bare.count("|") + 1, limits)


def _problem_of_size(kind: str, value: object, limits: GrammarLimits) -> str | None:
    depth, width, level = 0, 0, [value]
    while level := [child for node in level for child in _children(node)]:
        depth += 1
        width += len(level)
    return _problem_of_extent(kind, depth, width, limits)


def _problem_of_extent(kind: str, depth: int, width: int, limits: GrammarLimits) -> str | None:
    if depth > limits.max_depth:
        return f"the {kind} is nested {depth} deep, at most {limits.max_depth} is allowed"
    if width > limits.max_alternatives:
        return f"the {kind} has {width} alternatives, at most {limits.max_alternatives} are allowed"
    return None


def _children(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
