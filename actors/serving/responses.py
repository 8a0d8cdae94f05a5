"""`/v1/responses`: a conversation in, items out, whole or as typed events. Nothing of either is kept."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..outputs import CompletionOutput
from .chat import chat_job, only_wanted, parser_of
from .chat_delta import ChatDelta
from .chat_protocol import ChatRequest, TokenLogprob
from .errors import ApiError
from .reply import replied
from .responses_input import chat_of
from .responses_items import Event, ItemTable
from .responses_logprobs import NoScores, Scores, TextScores
from .responses_protocol import ResponsesRequest
from .responses_state import ResponseState, end_of, ending
from .service import Form, Job, Service, offloaded
from .streams import typed_sse
from .tool_parsers import TOOL_FORMATS

_FORM = Form("resp_", "input", "top_logprobs")


async def responses(service: Service, request: Request) -> Response:
    """Answers one request; raises ApiError, RequestError and EngineDeadError before anything is sent."""
    body = await service.parse(request, ResponsesRequest)
    service.check_model(body.model)
    chat = await offloaded(request, lambda: chat_of(body))
    job = await chat_job(service, request, chat, _FORM, "text.format")
    reply = _Reply(service, body, chat, job)
    return await replied(service, request, job, reply, bool(body.stream), reply.failure)


class _Reply:
    """A job's answer in the API's form."""

    def __init__(self, service: Service, body: ResponsesRequest, chat: ChatRequest, job: Job) -> None:
        self._service, self._job = service, job
        self._items = ItemTable()
        self._state = ResponseState(service, body, job, self._items)
        self._reader = _Reader(service, chat, job)
        self._num_events = 0

    def whole(self) -> dict[str, Any]:
        """The response of a request that has ended; of a call that broke off there is its text alone."""
        (output,) = self._job.answers[0].output().outputs
        read = list(self._reader.read(output))
        complete = {piece.index for delta, _ in read for piece in delta.tool_calls if piece.is_last}
        for delta, logprobs in read:
            delta.tool_calls = [piece for piece in delta.tool_calls if piece.index in complete]
            self._items.feed(delta, logprobs)
        self._items.finish(end_of(output))
        return self._state.ended(output).model_dump()

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The response as events; those of one step of the engine travel together."""
        output = CompletionOutput(0)
        async with aclosing(self._service.run(self._job)) as steps:
            async for moved in steps:
                events = [] if self._num_events else self._state.beginning()
                for output in (each for answer in moved for each in answer.news()):
                    events += self._events(output)
                yield self._sent(events)
        yield self._sent([ending(self._state.ended(output))])

    def failure(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        return self._sent([ending(self._state.failed(error.body.error.message))])

    def _events(self, output: CompletionOutput) -> list[Event]:
        """What is new of the items."""
        read = self._reader.read(output)
        events = [event for delta, logprobs in read for event in self._items.feed(delta, logprobs)]
        return events + self._items.finish(end_of(output)) if output.finished() else events

    def _sent(self, events: Iterable[Event]) -> bytes:
        numbered = [event | {"sequence_number": number} for number, event in enumerate(events, self._num_events)]
        self._num_events += len(numbered)
        return b"".join(map(typed_sse, numbered))


class _Reader:
    """An answer's text as deltas, each with its content's logprobs.

    A piece that a parser of calls is given has one tag at most, and that at its beginning: see `ItemTable`.
    """

    def __init__(self, service: Service, chat: ChatRequest, job: Job) -> None:
        prompt = job.answers[0].prompt
        self._chat = chat
        self._parser = parser_of(chat, service, prompt.text or "")
        tool = service.config.tool_call_parser
        self._tag_mark = TOOL_FORMATS[tool].call[0][0] if tool and self._parser.reads_calls else ""
        self._scores: Scores = NoScores()
        if chat.logprobs:
            skips = job.params.skip_special_tokens
            self._scores = TextScores(service.tokenizer, prompt.token_ids, skips, chat.top_logprobs or 0)

    def read(self, output: CompletionOutput) -> Iterator[tuple[ChatDelta, list[TokenLogprob]]]:
        """What has come of the answer."""
        for piece in self._pieces(output):
            self._scores.read(piece)
            yield self._told(self._parser.feed(piece))
        if output.finished():
            yield self._told(self._parser.finish())

    def _told(self, delta: ChatDelta) -> tuple[ChatDelta, list[TokenLogprob]]:
        logprobs = self._scores.of(delta.content)
        if not delta.content and (delta.reasoning or any(piece.is_last for piece in delta.tool_calls)):
            self._scores.pass_by()
        return only_wanted(self._chat, delta), logprobs

    def _pieces(self, output: CompletionOutput) -> Iterator[str]:
        for piece in self._scores.pieces(output):
            yield from re.split(f"(?={re.escape(self._tag_mark)})", piece) if self._tag_mark else [piece]
