"""One tool call as Hermes and Qwen write it: `{"name": "f", "arguments": {...}}`, while its text comes.

The arguments are passed on as they are written, but for their last brace: it waits until the caller says that the call
is complete, so the arguments of a call that breaks off are never a whole object. Arguments that come as a string, or
before the name, wait for their end, or for the name. Left-out arguments are an empty object; other keys are skipped.
"""

from __future__ import annotations

import json
import re
import secrets
from enum import Enum, auto

from .chat_delta import ToolCallDelta
from .json_scanner import SPACE, JsonScanner, Scan

_SURROGATE = re.compile("[\ud800-\udfff]")  # can't be sent: UTF-8 has no form for it


class _Place(Enum):
    START = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    NEXT = auto()


class HermesCall:
    """Follows the call's object; `status` is BAD as soon as it can be no call."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._is_sent = False  # some piece has been given out
        self.status = Scan.OPEN
        self._place = _Place.START
        self._scanner: JsonScanner | None = None  # of the key or the value that is being read
        self._key = ""
        self._seen: set[str] = set()
        self._string: list[str] | None = None  # the text of the string that is being read
        self._name: str | None = None
        self._arguments: list[str] = []  # not given out yet

    def take(self, text: str, at: int) -> int:
        """Reads on from `at`; the position behind the object, of the character that can't be, or the text's end."""
        while at < len(text) and self.status is Scan.OPEN:
            if self._scanner is not None:
                at = self._take_value(self._scanner, text, at)
            elif text[at] in SPACE:
                at += 1
            else:
                at += self._take_mark(text[at])
        return at

    def pop(self) -> ToolCallDelta | None:
        """What can be given out by now, if anything."""
        return self._piece() if self._name is not None and self._arguments else None

    def complete(self) -> ToolCallDelta:
        """The last piece; for a call whose status is DONE."""
        self._arguments.append("}")
        piece = self._piece()
        piece.is_last = True
        return piece

    def _piece(self) -> ToolCallDelta:
        piece = ToolCallDelta(self._index, arguments="".join(self._arguments))
        if not self._is_sent:
            piece.name, piece.id = self._name, f"call_{secrets.token_hex(12)}"
        self._is_sent = True
        self._arguments = []
        return piece

    def _take_mark(self, char: str) -> int:
        """Takes a character of the call's own object; none if a key or a value begins with it, or it can't be."""
        match self._place, char:
            case _Place.START, "{":
                self._place = _Place.FIRST_KEY
            case _Place.COLON, ":":
                self._place = _Place.VALUE
            case _Place.NEXT, ",":
                self._place = _Place.KEY
            case ((_Place.FIRST_KEY | _Place.NEXT), "}"):
                self._end()
            case ((_Place.FIRST_KEY | _Place.KEY), '"') | (_Place.VALUE, _) if self._may_begin(char):
                self._scanner = JsonScanner()
                self._string = [] if char == '"' else None
                return 0
            case _:
                self.status = Scan.BAD
                return 0
        return 1

    def _may_begin(self, char: str) -> bool:
        """Whether the key's value may be of the kind that begins so."""
        if self._place is not _Place.VALUE:
            return True
        return char in {"name": '"', "arguments": '{"'}.get(self._key, char)

    def _take_value(self, scanner: JsonScanner, text: str, at: int) -> int:
        end = scanner.take(text, at)
        piece = text[at:end]
        is_done = scanner.status is Scan.DONE
        if self._string is not None:
            self._string.append(piece)
        elif self._key == "arguments":
            self._keep(piece[:-1] if is_done else piece)
        if is_done:
            self._scanner = None
            self._end_value()
        elif scanner.status is Scan.BAD:
            self.status = Scan.BAD
        return end

    def _end_value(self) -> None:
        string = json.loads("".join(self._string)) if self._string is not None else ""
        if self._place is not _Place.VALUE:
            self._place = _Place.COLON
            self._begin_key(string)
            return
        self._place = _Place.NEXT
        if self._key == "name":
            self._take_name(string)
        elif self._key == "arguments" and self._string is not None:
            self._take_inner(string)
        self._key, self._string = "", None

    def _begin_key(self, key: str) -> None:
        if key in self._seen and key in ("name", "arguments"):
            self.status = Scan.BAD
        self._key, self._string = key, None
        self._seen.add(key)

    def _take_name(self, name: str) -> None:
        if not name or _SURROGATE.search(name):
            self.status = Scan.BAD
        self._name = name

    def _take_inner(self, arguments: str) -> None:
        """Arguments that came as a string: an object must be in it."""
        arguments = arguments.strip(SPACE)
        scanner = JsonScanner()
        end = scanner.take(arguments, 0)
        is_object = scanner.status is Scan.DONE and end == len(arguments) and arguments[0] == "{"
        if not is_object or _SURROGATE.search(arguments):
            self.status = Scan.BAD
            return
        self._keep(arguments[:-1])

    def _end(self) -> None:
        self.status = Scan.BAD if self._name is None else Scan.DONE
        if "arguments" not in self._seen:
            self._keep("{")

    def _keep(self, arguments: str) -> None:
        if arguments:
            self._arguments.append(arguments)
