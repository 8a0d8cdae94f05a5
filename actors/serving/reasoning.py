"""Tells a model's reasoning from its answer; the formats by name, made for one message from the prompt before it.

Qwen3: reasoning stands in `<think>` and `</think>`, at the very beginning. The prompt may already have opened the
block, and may also have closed it; then the text has reasoning only if it opens a block itself. Newlines beside the
tags are layout and dropped, so an empty block leaves no reasoning. Text that ends inside the block is all reasoning.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from ...configs.problems import unknown_name
from ...errors import ConfigError
from .chat_delta import ChatDelta, TextParser
from .tags import HeldSpace, find_tag

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"


class _Phase(Enum):
    START = auto()
    OPENED = auto()  # newlines that follow the opening tag
    THINKING = auto()
    CLOSED = auto()  # newlines that follow the closing tag
    CONTENT = auto()


class Qwen3Reasoning:
    """Looks at every character once; only the beginning of a tag, shorter than the tag, is looked at again."""

    def __init__(self, prompt: str) -> None:
        self._starts_open = prompt.rstrip().endswith(OPEN_TAG)
        self._phase = _Phase.START
        self._leading: list[str] = []  # white space before anything else
        self._newlines = HeldSpace("\n")  # may stand before the closing tag, and then go nowhere
        self._tail = ""  # may turn out to begin a tag

    def feed(self, text: str) -> ChatDelta:
        """What the text adds to the reasoning and to the content."""
        text = self._tail + text
        delta = ChatDelta()
        at, phase = 0, None
        while phase is not self._phase:
            phase = self._phase
            at = self._read(phase, text, at, delta)
        self._tail = text[at:]
        return delta

    def finish(self) -> ChatDelta:
        """What was held back."""
        delta = ChatDelta()
        tail, self._tail = self._tail, ""
        if self._phase is _Phase.START:
            self._begin(delta)
        if self._phase is _Phase.THINKING:
            delta.reasoning += self._newlines.push(tail) + self._newlines.pop()
        else:
            delta.content += tail
        return delta

    def _read(self, phase: _Phase, text: str, at: int, delta: ChatDelta) -> int:
        """Reads on in a phase, until it ends or the text does."""
        if phase is _Phase.START:
            return self._read_start(text, at, delta)
        if phase is _Phase.OPENED:
            return self._skip_newlines(text, at, _Phase.THINKING)
        if phase is _Phase.THINKING:
            return self._read_reasoning(text, at, delta)
        if phase is _Phase.CLOSED:
            return self._skip_newlines(text, at, _Phase.CONTENT)
        delta.content += text[at:]
        return len(text)

    def _read_start(self, text: str, at: int, delta: ChatDelta) -> int:
        begin = len(text) - len(text[at:].lstrip())
        self._leading.append(text[at:begin])
        found = text[begin : begin + len(OPEN_TAG)]
        if found == OPEN_TAG:
            self._phase = _Phase.OPENED
            return begin + len(OPEN_TAG)
        if not OPEN_TAG.startswith(found):
            self._begin(delta)
        return begin

    def _begin(self, delta: ChatDelta) -> None:
        """No tag opens the text: it is what the prompt has left open."""
        leading = "".join(self._leading)
        if self._starts_open:
            self._phase = _Phase.THINKING
            delta.reasoning += self._newlines.push(leading.lstrip("\n"))
        else:
            self._phase = _Phase.CONTENT
            delta.content += leading

    def _read_reasoning(self, text: str, at: int, delta: ChatDelta) -> int:
        begin = find_tag(CLOSE_TAG, text, at)
        delta.reasoning += self._newlines.push(text[at:begin])
        if not text.startswith(CLOSE_TAG, begin):
            return begin
        self._phase = _Phase.CLOSED
        return begin + len(CLOSE_TAG)

    def _skip_newlines(self, text: str, at: int, then: _Phase) -> int:
        while at < len(text) and text[at] == "\n":
            at += 1
        if at < len(text):
            self._phase = then
        return at


REASONING_PARSERS: dict[str, Callable[[str], TextParser]] = {"qwen3": Qwen3Reasoning}


def reasoning_parser(name: str, prompt: str) -> TextParser:
    """A parser for the message that follows the prompt, which is the chat template's text."""
    if name not in REASONING_PARSERS:
        raise ConfigError(unknown_name(name, REASONING_PARSERS, "reasoning parser"))
    return REASONING_PARSERS[name](prompt)
