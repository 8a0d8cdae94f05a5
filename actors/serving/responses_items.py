"""The items of an answer while they grow, and the events that tell of them, for whole answers and streams alike.

An item is open from its first piece until something else follows, so that items stand in the order of the text. A
delta doesn't say in which order its own pieces were, but where its text has had one tag at most, there is only one:
reasoning, what goes on with a call or is the last of it, content, what begins a call.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from .chat_delta import ChatDelta, ToolCallDelta
from .chat_protocol import TokenLogprob
from .responses_output import OutputCall, OutputItem, OutputMessage, OutputReasoning, OutputText, ReasoningText

Event = dict[str, Any]
End = Literal["completed", "incomplete"]


class ItemTable:
    """All items of one answer."""

    def __init__(self) -> None:
        self._items: list[OutputItem] = []
        self._open: _OpenText | _OpenCall | None = None

    @property
    def output(self) -> list[OutputItem]:
        """The items, without calls that broke off: no client is to make them, and content has their text too."""
        return [each for each in self._items if not (isinstance(each, OutputCall) and each.status == "incomplete")]

    def feed(self, delta: ChatDelta, logprobs: list[TokenLogprob]) -> list[Event]:
        """What a piece of the answer adds; `logprobs` are of its content's tokens."""
        events: list[Event] = []
        if delta.reasoning:
            events += self._feed_text(OutputReasoning, ReasoningText, delta.reasoning, [])
        begun = [piece for piece in delta.tool_calls if piece.name is not None and not piece.is_last]
        for piece in delta.tool_calls:
            events += self._feed_call(piece) if piece not in begun else []
        if delta.content:
            events += self._feed_text(OutputMessage, OutputText, delta.content, logprobs)
        for piece in begun:
            events += self._feed_call(piece)
        return events

    def finish(self, end: End) -> list[Event]:
        """Nothing more comes; an answer that says nothing is an empty message."""
        events = [] if self._items else list(self._begin(_OpenText(0, OutputMessage(), OutputText())))
        return events + list(self._close(end))

    def break_off(self) -> None:
        """Leaves the items as they are."""
        for _ in self._close("incomplete"):
            pass

    def _feed_text(
        self,
        kind: type[OutputMessage | OutputReasoning],
        part: type[OutputText | ReasoningText],
        text: str,
        logprobs: list[TokenLogprob],
    ) -> Iterator[Event]:
        if not isinstance(self._open, _OpenText) or not isinstance(self._open.item, kind):
            yield from self._begin(_OpenText(len(self._items), kind(), part()))
        assert isinstance(self._open, _OpenText)
        yield from self._open.add(text, logprobs)

    def _feed_call(self, piece: ToolCallDelta) -> Iterator[Event]:
        if piece.name is not None:
            call = OutputCall(call_id=piece.id or "", name=piece.name)
            yield from self._begin(_OpenCall(len(self._items), call))
        assert isinstance(self._open, _OpenCall), f"a piece of call {piece.index} comes outside of it"
        yield from self._open.add(piece.arguments)
        if piece.is_last:
            self._open.is_whole = True
            yield from self._close("completed")

    def _begin(self, opened: _OpenText | _OpenCall) -> Iterator[Event]:
        yield from self._close("completed")
        self._open = opened
        self._items.append(opened.item)
        yield from opened.begin()

    def _close(self, end: End) -> Iterator[Event]:
        """Ends the open item; a call that is still open has broken off."""
        opened, self._open = self._open, None
        if opened is not None:
            yield from opened.end(end if opened.is_whole else "incomplete")


class _OpenText:
    """A message, or reasoning, of one part."""

    def __init__(self, index: int, item: OutputMessage | OutputReasoning, part: OutputText | ReasoningText) -> None:
        self.item = item
        self.is_whole = True  # wherever it ends
        self._part = part
        self._pieces: list[str] = []
        self._item_place = {"item_id": item.id, "output_index": index}
        self._place = self._item_place | {"content_index": 0}

    def begin(self) -> Iterator[Event]:
        yield _item_event("added", self._item_place, self.item)
        yield _event("content_part.added", self._place, part=self._part.model_dump())

    def add(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        self._pieces.append(text)
        if isinstance(self._part, OutputText):
            self._part.logprobs += logprobs
        yield _event(f"{self._part.type}.delta", self._place, delta=text, **self._scored(logprobs))

    def end(self, end: End) -> Iterator[Event]:
        self._part.text = text = "".join(self._pieces)
        self.item.status = end
        self.item.content = [self._part]  # type: ignore[assignment]
        scored = self._scored(self._part.logprobs if isinstance(self._part, OutputText) else [])
        yield _event(f"{self._part.type}.done", self._place, text=text, **scored)
        yield _event("content_part.done", self._place, part=self._part.model_dump())
        yield _item_event("done", self._item_place, self.item)

    def _scored(self, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        is_text = isinstance(self._part, OutputText)
        return {"logprobs": [each.model_dump() for each in logprobs]} if is_text else {}


class _OpenCall:
    """A call whose arguments come."""

    def __init__(self, index: int, item: OutputCall) -> None:
        self.item = item
        self.is_whole = False
        self._pieces: list[str] = []
        self._place = {"item_id": item.id, "output_index": index}

    def begin(self) -> Iterator[Event]:
        yield _item_event("added", self._place, self.item)

    def add(self, arguments: str) -> Iterator[Event]:
        self._pieces.append(arguments)
        if arguments:
            yield _event("function_call_arguments.delta", self._place, delta=arguments)

    def end(self, end: End) -> Iterator[Event]:
        self.item.arguments, self.item.status = "".join(self._pieces), end
        if end == "completed":
            yield _event("function_call_arguments.done", self._place, arguments=self.item.arguments)
        yield _item_event("done", self._place, self.item)


def _event(kind: str, place: dict[str, Any], **fields: Any) -> Event:
    return {"type": f"response.{kind}"} | place | fields


def _item_event(kind: str, place: dict[str, Any], item: OutputItem) -> Event:
    """An item's own event holds it as it is now, and so its id."""
    return {"type": f"response.output_item.{kind}", "output_index": place["output_index"], "item": item.model_dump()}
