"""What a pattern's `.`, classes and named classes match, and spellings of them that xgrammar doesn't misread.

A pattern of a JSON schema is for text that stands in JSON without an escape. Where xgrammar makes an automaton of one,
it leaves out quotes, backslashes and control characters; one with letters beyond ASCII, or a large one, becomes rules
of the grammar, which would take them in. So every set of characters says by itself what fits. Other expressions have
what xgrammar would misread spelled in another way.
"""

from __future__ import annotations

import re

ESCAPE = r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|u\{[0-9a-fA-F]{1,6}\}|.)"
_PART = re.compile(f"{ESCAPE}|.", re.DOTALL)  # of a class

Ranges = list[tuple[int, int]]  # of characters, first and last

_LAST = 0x10FFFF
_UNFIT: Ranges = [(0, 0x1F), (0x22, 0x22), (0x5C, 0x5C), (0xD800, 0xDFFF)]  # surrogates are halves of a character
_LINE_ENDS: Ranges = [(0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)]
_DIGITS: Ranges = [(0x30, 0x39)]
_SPACES: Ranges = [(0x09, 0x0D), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029)]
_NAMED = {
    r"\d": _DIGITS,
    r"\w": [*_DIGITS, (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
    r"\s": [*_SPACES, (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)],
}
_HEX_DIGITS = frozenset(map(ord, "0123456789ABCDEFabcdef"))
_CONTROLS = dict(zip("0aefnrtv", "\0\a\x1b\f\n\r\t\v", strict=True))


def parts(token: str) -> list[str]:
    """A class's members, or the token alone."""
    return _PART.findall(token[1:]) if token[0] == "[" else [token]


def character(token: str) -> str:
    """The character that a token means; a token that means another thing is returned as it is."""
    if token[:2] in (r"\x", r"\u") and len(token) > 2:
        return chr(min(int(token[2:].strip("{}"), 16), _LAST))
    if token[0] == "\\" and token[1:] in _CONTROLS:
        return _CONTROLS[token[1:]]
    return token[1] if token[0] == "\\" and not token[1:2].isalnum() and len(token) > 1 else token


def fitting(token: str) -> Ranges | None:
    """What fits of a set of characters; None for any other token, and for a class that the compiler refuses."""
    matched = _matched(token)
    return None if matched is None else _others(_others(matched) + _UNFIT)


def spelled(token: str) -> str:
    """A pattern's token in ASCII, a set of characters as the ranges that fit."""
    if (ranges := fitting(token)) is not None:
        return _class_of(ranges)
    return respelled(token) if token.isascii() or token[0] == "[" else _escaped(ord(character(token)))


def respelled(token: str) -> str:
    """An expression's token so that xgrammar reads it as it is meant.

    It takes the hexadecimal digits behind `\\xHH` for more of that, and an escaped caret at a class's beginning for one
    that negates.
    """
    if token[0] == "[" and (ranges := _matched(token)):
        return _class_of(ranges)
    return _escaped(ord(character(token))) if token[:2] == r"\x" and len(token) > 2 else token


def _matched(token: str) -> Ranges | None:
    if token == ".":
        return _others(_LINE_ENDS)
    if (named := _NAMED.get(token.lower())) is not None:
        return named if token.islower() else _others(named)
    if token[0] != "[" or token[-1] != "]":
        return None
    members = parts(token)[:-1]
    negated = members[:1] == ["^"]
    ranges = _ranges_of(members[negated:])
    return _others(ranges) if negated and ranges is not None else ranges


def _ranges_of(members: list[str]) -> Ranges | None:
    """The union of a class's members; None where a range runs backwards, or one is no character (`\\b`, a number)."""
    ranges: Ranges = []
    while members:
        first, rest = members[0], members[1:]
        if len(rest) > 1 and rest[0] == "-" and len(character(first)) == len(character(rest[1])) == 1:
            ranges.append((ord(character(first)), ord(character(rest[1]))))
            members = rest[2:]
            continue
        if len(character(first)) == 1:
            ranges.append((ord(character(first)), ord(character(first))))
        elif (named := _matched(first)) is not None:
            ranges += named
        else:
            return None
        members = rest
    return None if any(low > high for low, high in ranges) else ranges


def _others(ranges: Ranges) -> Ranges:
    """All characters but these."""
    found, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return found if start > _LAST else [*found, (start, _LAST)]


def _class_of(ranges: Ranges) -> str:
    """A class that doesn't begin with a caret, and in which no hexadecimal digit stands behind another range.

    xgrammar writes `\\u{fc}` as `\\xfc`, and would take the digit for more of it.
    """
    ranges = sorted(_others(_others(ranges)), key=lambda each: (each[0] not in _HEX_DIGITS, each))
    if ranges and ranges[0][0] == ord("^"):
        (_, last), *others = ranges
        ranges = [*([(ord("_"), last)] if last > ord("^") else []), *others]
        if not ranges:
            return r"\^"
        ranges.append((ord("^"), ord("^")))
    return f"[{''.join(f'{_escaped(low)}-{_escaped(high)}' for low, high in ranges)}]"


def _escaped(code: int) -> str:
    return f"\\u{{{code:x}}}"
