"""Feeds a text to a parser in pieces of drawn sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle

from hypothesis import strategies as st

from penstock.actors.serving.chat_delta import ChatMessage, TextParser, joined

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def pieces(text: str, sizes: Sequence[int]) -> Iterator[str]:
    at, size = 0, cycle(sizes)
    while at < len(text):
        end = at + next(size)
        yield text[at:end]
        at = end


def parse(parser: TextParser, text: str, sizes: Sequence[int] = (1 << 30,)) -> ChatMessage:
    message = joined([*(parser.feed(piece) for piece in pieces(text, sizes)), parser.finish()])
    for call in message.tool_calls:
        call.id = "" if call.id.startswith("call_") and len(call.id) == len("call_") + 24 else "wrong"
    return message
