"""What an answer's text turns into: content, reasoning and tool calls, in pieces; and the parsers' contract.

Pieces of one kind only ever follow each other: joining them gives the message, whatever the cuts were.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True)
class ToolCallDelta:
    """One piece of one tool call.

    All pieces of a call together hold a JSON object as text. A call that breaks off never gets a last piece, and its
    pieces never hold a whole object; its text comes out as content too.
    """

    index: int  # which call of the message
    name: str | None = None  # with the first piece of a call, and so is its id
    id: str | None = None
    arguments: str = ""
    is_last: bool = False


@dataclass(slots=True)
class ChatDelta:
    """What a piece of an answer adds to the message."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)


@dataclass(slots=True)
class ToolCall:
    """A tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(slots=True)
class ChatMessage:
    """A whole answer; of its tool calls those that are complete."""

    content: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)


class TextParser(Protocol):
    """Reads an answer while it comes, in pieces of any size; never raises, whatever the text is."""

    def feed(self, text: str) -> ChatDelta:
        """What a piece adds; text that may turn out to begin a tag waits for the next one."""

    def finish(self) -> ChatDelta:
        """What waited for a next piece, now that there is none."""


class ToolParser(TextParser, Protocol):
    """A parser that finds tool calls in the text, and leaves the rest as content."""

    num_calls: int  # complete ones so far


class PlainText:
    """Takes all text for content: stands in where a message has no tools, or no reasoning."""

    num_calls = 0

    def feed(self, text: str) -> ChatDelta:
        """The text, as it is."""
        return ChatDelta(content=text)

    def finish(self) -> ChatDelta:
        """Nothing: it holds nothing back."""
        return ChatDelta()


def joined(deltas: Iterable[ChatDelta]) -> ChatMessage:
    """The message that a parser's deltas add up to."""
    deltas = list(deltas)
    calls: dict[int, list[ToolCallDelta]] = {}
    for piece in (piece for delta in deltas for piece in delta.tool_calls):
        calls.setdefault(piece.index, []).append(piece)
    return ChatMessage(
        content="".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas),
        tool_calls=[_whole(pieces) for pieces in calls.values() if pieces[-1].is_last],
    )


def _whole(pieces: list[ToolCallDelta]) -> ToolCall:
    return ToolCall(pieces[0].id or "", pieces[0].name or "", "".join(piece.arguments for piece in pieces))
