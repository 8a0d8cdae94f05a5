"""Turns pydantic's complaints into one sentence for each wrong value: its name, the value, the limit."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError

_MAX_SHOWN_CHARS = 200  # of a value
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
    sentences = []
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            sentences.append(unknown_name(path, known, kind))
        elif not path:
            sentences.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] == "missing":
            sentences.append(f"{path} is missing")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            sentences.append(f"{path} is {_shown(problem['input'])}: {message[:1].lower()}{message[1:]}")
    return "; ".join(sentences)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
