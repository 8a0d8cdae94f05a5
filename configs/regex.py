"""Regular expressions as grammars take them: for a whole text, with anchors at its ends or none.

What a grammar would misread is refused by name: xgrammar drops an anchor in the middle, and takes an escape that it
doesn't know for the letter. A JSON schema's `pattern` searches in a text; `searching` writes it for the whole of one.
What the grammar's compiler refuses itself (references back, looking behind) isn't looked for; lookaheads of a pattern
it drops.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import takewhile

from .regex_classes import ESCAPE, character, fitting, parts, respelled, spelled

_CLASS = r"\[\^?(?:\\.|[^\]\\])*+\]?"
_TOKEN = re.compile(f"{ESCAPE}|{_CLASS}|.", re.DOTALL)
_PLAIN = re.compile(r"[\w-]")  # what stands for itself
_READ_IN_CLASSES = set("abcdDefnrsStuvwWx0123456789")  # what means something behind a backslash
_READ = _READ_IN_CLASSES | set("BkpP")


def problem_of_regex(text: str, name: str = "regex") -> str | None:
    """What a grammar would misread, in words."""
    for tokens in _alternatives(text):
        for at, token in enumerate(tokens):
            if (token == "^" and at > 0) or (token == "$" and at < len(tokens) - 1):
                return f"the {name} has {token!r} in the middle, where it can't be enforced"
            read = _READ_IN_CLASSES if token[0] == "[" else _READ
            for part in parts(token):
                if part[0] == "\\" and part[1:2].isalnum() and part[1] not in read:
                    return f"the {name} uses {part!r}, which can't be enforced"
    return None


def problem_of_pattern(text: str) -> str | None:
    """The same of a JSON schema's pattern, whose text stands in JSON as it is: nothing in it may need an escape."""
    if (problem := problem_of_regex(text, "json's pattern")) is not None:
        return problem
    tokens = _TOKEN.findall(text)
    if any(group in (("(", "?", "="), ("(", "?", "!")) for group in zip(tokens, tokens[1:], tokens[2:], strict=False)):
        return "the json's pattern looks ahead, which can't be enforced"
    for token in tokens:
        forbidden = () if token[0] == "[" else ('"', "\\")  # a class leaves out these two
        for part in () if token.startswith("[^") else parts(token):  # what a class excludes may need one
            if _is_control(part) or character(part) in forbidden:
                return f"the json's pattern holds {part!r}, which needs an escape in JSON and can't be enforced"
        if token[0] == "[" and not fitting(token):
            return f"the json's pattern holds {token!r}, of which nothing is left that needs no escape in JSON"
    return None


def as_meant(text: str) -> str:
    """The expression without what a grammar's compiler reads as another one."""
    return "".join(map(respelled, _TOKEN.findall(text)))


def searching(pattern: str, spell: Callable[[str], str] = spelled) -> str:
    """A pattern for the whole of a text in which `pattern` is found; `respelled` is for texts outside of JSON."""
    return "|".join(_opened(tokens, spell) for tokens in _alternatives(pattern))


def beginnings(pattern: str) -> list[str]:
    """With one of these begins every text in which the pattern is found; none begins with another."""
    shortest = list[str]()
    for head in sorted(map(_beginning, _alternatives(pattern))):
        if not shortest or not head.startswith(shortest[-1]):
            shortest.append(head)
    return shortest


def _beginning(tokens: list[str]) -> str:
    if tokens[:1] != ["^"]:
        return ""
    literal = list(takewhile(_PLAIN.fullmatch, tokens[1:]))
    behind = "".join(tokens[1 + len(literal) :][:1])
    return "".join(literal[:-1] if behind in ("*", "?", "{") else literal)  # whose last may be left out


def _opened(tokens: list[str], spell: Callable[[str], str]) -> str:
    begins, ends = tokens[:1] == ["^"], tokens[-1:] == ["$"]
    middle = "".join(map(spell, tokens[begins : len(tokens) - ends]))
    anything = f"{spell('[^]')}*"
    return f"{'' if begins else anything}{middle}{'' if ends else anything}"


def _alternatives(text: str) -> list[list[str]]:
    """The tokens of each alternative, those in parentheses not told apart."""
    found, depth = [list[str]()], 0
    for token in _TOKEN.findall(text):
        depth += (token == "(") - (token == ")")
        if token == "|" and depth == 0:
            found.append([])
        else:
            found[-1].append(token)
    return found


def _is_control(token: str) -> bool:
    return token == r"\c" or (len(meant := character(token)) == 1 and meant < " ")
