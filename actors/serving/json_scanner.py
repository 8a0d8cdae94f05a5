"""Follows one JSON value while its text comes, in pieces of any size: where it ends, or where it is none.

It judges every character once, after RFC 8259 and nothing beyond it, and keeps no text: only its place in the grammar
and the brackets that are open, in a list, so depth costs memory and no recursion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum

SPACE = " \t\n\r"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')  # what stands for itself in a string
_HEX = "0123456789abcdefABCDEF"

_VALUE, _KEY, _COLON, _AFTER = "value", "key", "colon", "after"
_OBJECT, _ARRAY, _COMMA, _CLOSE = "object", "array", "comma", "close"  # these act on the open brackets
_KEY_TEXT, _TEXT = "key text", "text"


class Scan(Enum):
    """How a scan stands."""

    OPEN = "open"
    DONE = "done"
    BAD = "bad"


def _row(*transitions: tuple[Iterable[str], str]) -> dict[str, str]:
    return {char: place for chars, place in transitions for char in chars}


def _string(text: str, after: str) -> dict[str, dict[str, str]]:
    """The places in a string; its plain characters are skipped, not looked up."""
    digits = [f"{text} u{left}" for left in range(4)]
    return {
        text: _row(('"', after), ("\\", f"{text} escape")),
        f"{text} escape": _row(('"\\/bfnrt', text), ("u", digits[3])),
        **{digits[left]: _row((_HEX, digits[left - 1] if left else text)) for left in range(4)},
    }


def _literals(*words: str) -> dict[str, dict[str, str]]:
    """The places in a word are what is still to come of it."""
    return {word[at:]: _row((word[at], word[at + 1 :] or _AFTER)) for word in words for at in range(1, len(word))}


_NUMBERS = {
    "minus": _row(("0", "zero"), ("123456789", "integer")),
    "zero": _row((".", "point"), ("eE", "exponent")),
    "integer": _row(("0123456789", "integer"), (".", "point"), ("eE", "exponent")),
    "point": _row(("0123456789", "fraction")),
    "fraction": _row(("0123456789", "fraction"), ("eE", "exponent")),
    "exponent": _row(("+-", "sign"), ("0123456789", "power")),
    "sign": _row(("0123456789", "power")),
    "power": _row(("0123456789", "power")),
}
_NUMBER_ENDS = {"zero", "integer", "fraction", "power"}
_BEGINNINGS = (
    *(('"', _TEXT), ("{", _OBJECT), ("[", _ARRAY), ("-", "minus"), ("0", "zero"), ("123456789", "integer")),
    *(("t", "rue"), ("f", "alse"), ("n", "ull")),
)
_PLACES = {
    _VALUE: _row((SPACE, _VALUE), *_BEGINNINGS),
    _OBJECT: _row((SPACE, _OBJECT), ('"', _KEY_TEXT), ("}", _CLOSE)),
    _ARRAY: _row((SPACE, _ARRAY), *_BEGINNINGS, ("]", _CLOSE)),
    _KEY: _row((SPACE, _KEY), ('"', _KEY_TEXT)),
    _COLON: _row((SPACE, _COLON), (":", _VALUE)),
    _AFTER: _row((SPACE, _AFTER), (",", _COMMA), ("}]", _CLOSE)),
    **_NUMBERS,
    **_literals("true", "false", "null"),
    **_string(_KEY_TEXT, _COLON),
    **_string(_TEXT, _AFTER),
}


class JsonScanner:
    """One value. A number that stands alone ends with the first character that is none of it."""

    def __init__(self) -> None:
        self.status = Scan.OPEN
        self._place = _VALUE
        self._closers: list[str] = []  # of the open brackets

    def take(self, text: str, at: int) -> int:
        """Reads on from `at`; the position behind the value, of the character that can't be, or the text's end."""
        while at < len(text) and self.status is Scan.OPEN:
            if self._place in (_TEXT, _KEY_TEXT):
                at = _plain_end(text, at)
                if at == len(text):
                    break
            at += self._step(text[at])
        return at

    def _step(self, char: str) -> int:
        """Takes one character in; how many that were: none if it ends a number or can't stand here."""
        place = _PLACES[self._place].get(char)
        if place is None:
            return self._leave()
        if place in (_OBJECT, _ARRAY) and char in "{[":
            self._closers.append("}" if char == "{" else "]")
        elif place == _COMMA:
            place = _KEY if self._closers[-1] == "}" else _VALUE
        elif place == _CLOSE:
            if self._closers[-1] != char:
                return self._leave()
            self._closers.pop()
            place = _AFTER
        self._move(place)
        return 1

    def _leave(self) -> int:
        if self._place in _NUMBER_ENDS:
            self._move(_AFTER)
        else:
            self.status = Scan.BAD
        return 0

    def _move(self, place: str) -> None:
        self._place = place
        if place == _AFTER and not self._closers:
            self.status = Scan.DONE


def _plain_end(text: str, at: int) -> int:
    found = _PLAIN.match(text, at)
    return found.end() if found else at
