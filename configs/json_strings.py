"""A JSON schema's lengths and formats as patterns, where xgrammar's own take in what needs an escape in JSON.

Its strings of a length may hold control characters, its pointers quotes as well, its quoted addresses any escape. An
address has no quoted form here, then: every text of the pattern is one of the format.
"""

from __future__ import annotations

from .regex import searching

_ATOM, _LABEL = r"[\w!#$%&'*+/=?^`{|}~-]+", "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_POINTER = "(/([^/~]|~[01])*)*"
_FORMATS = {
    "email": rf"^{_ATOM}(\.{_ATOM})*@{_LABEL}(\.{_LABEL})*$",
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
}
# What `regex_classes.fitting` leaves of all characters, spelled beyond ASCII: as an automaton long texts take seconds.
_ANY = "[ !#-\\[\\]-\ud7ff\ue000-\U0010ffff]"
_NO_LIMIT = 1 << 31  # longer ones than xgrammar counts


def pattern_of_format(name: str) -> str | None:
    """The pattern that stands for a format; None where xgrammar's own is right."""
    pattern = _FORMATS.get(name)
    return None if pattern is None else searching(pattern)


def pattern_of_length(low: object, high: object) -> str | None:
    """The pattern for texts of at least so many characters, and at most; None where every text is, or none."""
    if type(low) is not int or type(high) is not int or not 0 <= low <= high or low >= _NO_LIMIT:
        return None  # as the compiler says, with the limit
    if high < _NO_LIMIT:
        return f"{_ANY}{{{low},{high}}}"
    return f"{_ANY}{{{low},}}" if low else None
