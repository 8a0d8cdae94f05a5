"""Answers as server-sent events, and requests that end when their client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import api_error

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client closed its connection before the answer was there."""


def sse(value: Any) -> bytes:
    """One event; `value` is plain data or a pydantic model."""
    return b"data: " + to_json(value) + b"\n\n"


class EventStream(Response):
    """A response of chunks that are sent as they come; a client that goes away ends their generator at once.

    The first chunk is there before: what refuses a request is raised before any status is sent.
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__()
        self._first = first
        self._rest = rest
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"

    @classmethod
    async def start(cls, receive: Receive, chunks: AsyncGenerator[bytes]) -> EventStream:
        """Waits for the first chunk; raises what keeps it from coming, ClientGoneError among it."""
        try:
            return cls(await until_gone(receive, anext(chunks)), chunks)
        except BaseException:
            await chunks.aclose()
            raise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            with suppress(ClientGoneError):
                await until_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send(send, self._first)
        try:
            async for chunk in self._rest:
                await _send(send, chunk)
        except Exception as error:  # the status is out: the stream itself has to say it
            await _send(send, sse(api_error(error).body) + DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, chunk: bytes) -> None:
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The work's result; cancels it and raises ClientGoneError when the client disconnects first."""
    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
