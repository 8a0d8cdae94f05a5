"""Tool calls as Hermes, Qwen2.5 and Qwen3 write them: `<tool_call>`, a JSON object, `</tool_call>`.

White space beside a call is layout: what stands right before one is dropped, and between the last one and the end.
Other content is kept as it is. A call goes out while it comes; one that breaks off or is no call comes out as content,
from its tag on, and what went out of it before can't be taken back (see `ToolCallDelta`). A call whose object is whole
when the text ends needs no closing tag. Names are passed on whatever tools there are: the client decides.
"""

from __future__ import annotations

from enum import Enum, auto

from .chat_delta import ChatDelta, ToolCallDelta
from .hermes_call import HermesCall
from .json_scanner import SPACE, Scan
from .tags import HeldSpace, find_tag

OPEN_TAG, CLOSE_TAG = "<tool_call>", "</tool_call>"


class _Phase(Enum):
    OUTSIDE = auto()
    INSIDE = auto()
    CLOSING = auto()  # the object is whole, its closing tag still to come


class HermesParser:
    """Looks at every character once; only the beginning of a tag, shorter than the tag, is looked at again."""

    def __init__(self) -> None:
        self.num_calls = 0
        self._num_sent = 0  # calls of which some piece has gone out; those that broke off have their index too
        self._phase = _Phase.OUTSIDE
        self._call = HermesCall(0)
        self._raw: list[str] = []  # the text of the open call
        self._space = HeldSpace()
        self._follows_call = False  # nothing but white space since the last call
        self._tail = ""  # may turn out to begin a tag
        self._content: list[str] = []
        self._pieces: list[ToolCallDelta] = []

    def feed(self, text: str) -> ChatDelta:
        """What the text adds to the message."""
        text = self._tail + text
        at, phase = 0, None
        while phase is not self._phase:
            phase = self._phase
            at = self._read(phase, text, at)
        self._tail = text[at:]
        return self._pop()

    def finish(self) -> ChatDelta:
        """What was held back; an unfinished call comes out as content."""
        tail, self._tail = self._tail, ""
        if self._phase is _Phase.CLOSING:
            self._complete()
        else:
            if self._phase is _Phase.INSIDE:
                self._give_up()
            self._say(tail)
        space = self._space.pop()
        if not self._follows_call:
            self._content.append(space)
        return self._pop()

    def _read(self, phase: _Phase, text: str, at: int) -> int:
        """Reads on in a phase, until it ends or the text does."""
        if phase is _Phase.OUTSIDE:
            return self._read_content(text, at)
        start = at
        at = self._call.take(text, at) if phase is _Phase.INSIDE else _skip_space(text, at)
        self._raw.append(text[start:at])
        if phase is _Phase.INSIDE:
            self._look_at_call()
            return at
        return self._read_close_tag(text, at)

    def _read_content(self, text: str, at: int) -> int:
        begin = find_tag(OPEN_TAG, text, at)
        self._say(text[at:begin])
        if not text.startswith(OPEN_TAG, begin):
            return begin
        self._call = HermesCall(self._num_sent)
        self._raw = [OPEN_TAG]
        self._phase = _Phase.INSIDE
        return begin + len(OPEN_TAG)

    def _look_at_call(self) -> None:
        if self._call.status is Scan.BAD:
            self._give_up()
            return
        if (piece := self._call.pop()) is not None:
            self._send(piece)
        if self._call.status is Scan.DONE:
            self._phase = _Phase.CLOSING

    def _read_close_tag(self, text: str, at: int) -> int:
        found = text[at : at + len(CLOSE_TAG)]
        if found == CLOSE_TAG:
            self._complete()
            return at + len(CLOSE_TAG)
        if not CLOSE_TAG.startswith(found):
            self._give_up()
        return at

    def _send(self, piece: ToolCallDelta) -> None:
        self._num_sent = piece.index + 1
        if self._pieces and self._pieces[-1].index == piece.index:
            self._pieces[-1].arguments += piece.arguments
            self._pieces[-1].is_last = piece.is_last
        else:
            self._pieces.append(piece)

    def _complete(self) -> None:
        self._send(self._call.complete())
        self.num_calls += 1
        self._space.pop()
        self._follows_call = True
        self._phase = _Phase.OUTSIDE

    def _give_up(self) -> None:
        self._phase = _Phase.OUTSIDE
        self._say("".join(self._raw))

    def _say(self, text: str) -> None:
        if words := self._space.push(text):
            self._content.append(words)
            self._follows_call = False

    def _pop(self) -> ChatDelta:
        delta = ChatDelta("".join(self._content), tool_calls=self._pieces)
        self._content, self._pieces = [], []
        return delta


def _skip_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in SPACE:
        at += 1
    return at
