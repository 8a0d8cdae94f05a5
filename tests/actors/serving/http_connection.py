"""An HTTP/1.1 client as light as it gets, so that what is measured is the server: a connection, a request at a time.

A body is read as it comes, by a callback that learns when; no thread, no queue, no copy stands in between.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import httptools
from pydantic_core import to_json

OnBody = Callable[[bytes, float], None]
"""Takes a part of the body, and when it came (`perf_counter`)."""


class EventReader:
    """Cuts a body that comes in parts into the data of its server-sent events."""

    def __init__(self) -> None:
        self.is_done = False  # whether the stream has said its end
        self._rest = b""

    def take(self, part: bytes) -> Iterator[bytes]:
        """The data of the events that the part completes."""
        *events, self._rest = (self._rest + part).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data == b"[DONE]":
                self.is_done = True
            else:
                yield data


class ConnectionEndedError(Exception):
    """The server closed the connection before its answer had ended."""


class Connection(asyncio.Protocol):
    """One connection, kept alive from request to request; made by `connect`."""

    @classmethod
    async def connect(cls, port: int) -> Connection:
        """Connects to a server on this machine."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: cls(loop), "127.0.0.1", port)
        return connection

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._answered: asyncio.Future[int] = loop.create_future()
        self._answered.set_result(0)  # nothing was asked

    async def post(self, path: str, body: object, on_body: OnBody) -> int:
        """The status, once the whole answer has come."""
        data = to_json(body)
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        return await self.ask(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data, on_body)

    async def get(self, path: str, on_body: OnBody) -> int:
        """The status, once the whole answer has come."""
        return await self.ask(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode(), on_body)

    async def ask(self, request: bytes, on_body: OnBody) -> int:
        """Sends the bytes of a request. Raises ConnectionEndedError."""
        self._on_body = on_body
        self._answered = self._loop.create_future()
        self._parser = httptools.HttpResponseParser(self)
        if self.transport.is_closing():
            raise ConnectionEndedError
        self.transport.write(request)
        return await self._answered

    def close(self) -> None:
        """Closes it at once, whatever is under way."""
        self.transport.abort()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._answered.done():
            self._answered.set_exception(ConnectionEndedError())

    # the parser's side

    def on_body(self, part: bytes) -> None:
        self._on_body(part, self._now_s)

    def on_message_complete(self) -> None:
        if not self._answered.done():
            self._answered.set_result(self._parser.get_status_code())


async def fetch(port: int, path: str) -> str:
    """The body of a GET on a connection of its own; anything but 200 is an error."""
    parts = list[bytes]()
    connection = await Connection.connect(port)
    try:
        status = await connection.get(path, lambda part, _: parts.append(part))
    finally:
        connection.close()
    body = b"".join(parts).decode()
    assert status == 200, f"{path}: {status} {body[:200]}"
    return body
