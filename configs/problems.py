"""Turns pydantic's complaints into one sentence for each wrong value: its name, the value, the limit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches

from pydantic import ValidationError
from pydantic_core import ErrorDetails

Loc = tuple[int | str, ...]
_MAX_SHOWN_CHARS = 200  # of a value
_WANTED = "Input should be "
_BRANCH = re.compile(r"(str|int|float|bool)$|(literal|list|dict)\[")  # of a union; each has one of these
_MAX_CHARS = 64  # of a name that others are compared with: comparing takes as long as the name is


def unknown_name(name: str, known: Iterable[str], kind: str = "setting") -> str:
    """The sentence for a name that does not exist; it offers the nearest one that does."""
    known = sorted(known)
    nearest = _nearest(name.lower().replace("-", "_"), known) if len(name) <= _MAX_CHARS else []
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are: {', '.join(known)}"
    return f"unknown {kind} {name!r}; {hint}"


def _nearest(name: str, known: list[str]) -> list[str]:
    """The one that is meant, if any: of names that share a few letters only, none is."""
    if name.startswith("guided_") and "structured_outputs" in known:
        return ["structured_outputs"]  # what vLLM has called it since
    near = get_close_matches(name, known, n=1, cutoff=0.75)
    return near or [each for each in known if each.startswith(f"{name}_") or each.endswith(f"_{name}")]


def field_of(error: ValidationError) -> str | None:
    """The field of the first wrong value; None for one that is no field's."""
    loc = error.errors(include_url=False, include_input=False)[0]["loc"]
    return str(loc[0]) if loc else None


def explain(error: ValidationError, known: Iterable[str], kind: str = "setting") -> str:
    """All of a validation's problems, one sentence each, joined by '; '."""
    known = list(known)
    return "; ".join(_sentence(problem, known, kind) for problem in _nearest_problems(error))


def _sentence(problem: ErrorDetails, known: list[str], kind: str) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return unknown_name(path, known, kind)
    if not path:
        return message
    if problem["type"] == "missing":
        return f"{path} is missing"
    return f"{path} is {_shown(problem['input'])}: {message[:1].lower()}{message[1:]}"


def _nearest_problems(error: ValidationError) -> list[ErrorDetails]:
    """The problems, of a value that may be one thing or another only those of what it comes nearest to.

    Pydantic tells the problems of each branch of a union, and names the branch in the place.
    """
    problems = error.errors(include_url=False)
    unions = {place for problem in problems for place in _unions_in(problem)}
    groups: dict[Loc, list[ErrorDetails]] = {}
    for problem in problems:
        loc = problem["loc"]
        outermost = next((loc[:at] for at in range(len(loc)) if loc[:at] in unions), loc)
        problem["loc"] = tuple(part for at, part in enumerate(loc) if loc[:at] not in unions)
        groups.setdefault(outermost, []).append(problem)
    return [problem for group in groups.values() for problem in _nearest_in(group)]


def _unions_in(problem: ErrorDetails) -> Iterator[Loc]:
    """Places behind which a branch is named; an unknown name is none, whatever it is."""
    loc = problem["loc"]
    for at in range(1, len(loc) - (problem["type"] == "extra_forbidden")):
        if isinstance(part := loc[at], str) and _BRANCH.match(part):
            yield loc[:at]


def _nearest_in(group: list[ErrorDetails]) -> list[ErrorDetails]:
    """It comes nearest to the branch whose problem lies deepest, and is no other kind of value altogether."""
    depth = max(len(problem["loc"]) for problem in group)
    deepest = [problem for problem in group if len(problem["loc"]) == depth]
    if nearest := [problem for problem in deepest if not problem["type"].endswith("_type")]:
        return nearest
    if len({problem["loc"] for problem in deepest}) == 1:
        wanted = dict.fromkeys(problem["msg"].removeprefix(_WANTED) for problem in deepest)
        deepest[0]["msg"] = f"{_WANTED}{', or '.join(wanted)}"
        return deepest[:1]
    return deepest


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
