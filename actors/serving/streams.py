"""Answers as server-sent events, and requests that end when their client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError, api_error

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client closed its connection before the answer was there."""


def sse(value: Any) -> bytes:
    """One event; `value` is plain data or a pydantic model."""
    return b"data: " + to_json(value) + b"\n\n"


def typed_sse(event: dict[str, Any]) -> bytes:
    """One event that says its type in its frame too."""
    return f"event: {event['type']}\n".encode() + sse(event)


def error_event(error: ApiError) -> bytes:
    """How a stream of chunks ends that fails."""
    return sse(error.body) + DONE


class ClientWatch:
    """Cancels the task that serves a request when its client goes away, in the middle of what it waits for.

    One watch for the whole request, and no task for the work itself: every hand-over between tasks waits for a turn of
    the event loop, which is what a first token would wait for.
    """

    def __init__(self, receive: Receive) -> None:
        """Watches from now on, for the task that runs now; its body has been read."""
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._num_cancelling = task.cancelling()
        self._is_gone = self._has_ended = False
        self._watching = asyncio.ensure_future(_gone(receive))
        self._watching.add_done_callback(self._went)

    async def during(self, work: Awaitable[T]) -> T:
        """The work's result; raises ClientGoneError when the client has gone before."""
        try:
            return await work
        except asyncio.CancelledError:
            if self._is_gone and self._task.uncancel() <= self._num_cancelling:
                raise ClientGoneError from None
            raise

    def end(self) -> None:
        """Watches no longer."""
        self._has_ended = True
        self._watching.cancel()

    def _went(self, watching: asyncio.Future[None]) -> None:
        if not self._has_ended and not watching.cancelled():
            self._is_gone = True
            self._task.cancel()


class EventStream(Response):
    """A response of chunks that are sent as they come; a client that goes away ends their generator at once.

    The first chunk is there before: what refuses a request is raised before any status is sent. What fails afterwards
    the stream itself has to say, in the words of `failure`.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: bytes, rest: AsyncGenerator[bytes], watch: ClientWatch, failure: Callable[[ApiError], bytes]
    ) -> None:
        super().__init__()
        self._first = first
        self._rest = rest
        self._watch = watch
        self._failure = failure
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"

    @classmethod
    async def start(
        cls, receive: Receive, chunks: AsyncGenerator[bytes], failure: Callable[[ApiError], bytes] = error_event
    ) -> EventStream:
        """Waits for the first chunk; raises what keeps it from coming, ClientGoneError among it."""
        watch = ClientWatch(receive)
        try:
            return cls(await watch.during(anext(chunks)), chunks, watch, failure)
        except BaseException:
            watch.end()
            await chunks.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            try:
                with suppress(ClientGoneError):
                    await self._watch.during(self._send_all(send))
            finally:
                self._watch.end()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send(send, self._first)
        try:
            async for chunk in self._rest:
                await _send(send, chunk)
        except Exception as error:  # the status is out
            await _send(send, self._failure(api_error(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The work's result; cancels it and raises ClientGoneError when the client disconnects first."""
    watch = ClientWatch(receive)
    try:
        return await watch.during(work)
    finally:
        watch.end()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
