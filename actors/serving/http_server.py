"""uvicorn on an event loop that already runs, with bounds on what a connection may do.

They hold before a request is there, and for an answer that nobody reads; what an endpoint does has its own.
"""

from __future__ import annotations

import asyncio
import re
import socket
import time
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ...errors import ConfigError

MAX_HEAD_BYTES = 64 << 10  # request line and headers; and trailers, and a chunk's extension
KEEP_ALIVE_S = 75  # of an idle connection, beyond what load balancers keep theirs
STALL_S = 60.0  # for so long a client may leave unread what waits for it, and then its request ends
_BACKLOG = 2048
_UPGRADE = re.compile(rb"(?<=\n)upgrade(?=:)", re.IGNORECASE)


class _BoundedProtocol(HttpToolsProtocol):
    """Closes a connection on which too much comes that is no body, whose head takes too long, or that isn't read."""

    head_timeout_s = 30.0
    stall_timeout_s = STALL_S

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._num_idle_bytes = 0  # since the parser last came forward: of a head, of trailers, of a chunk's extension
        self._in_body = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)
        self._is_read()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self.stall_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_read()

    def data_received(self, data: bytes) -> None:
        self._num_idle_bytes += len(data)
        super().data_received(data if self._in_body else _without_upgrade(data))
        if self._num_idle_bytes > MAX_HEAD_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._head_is_there()
        self._num_idle_bytes = 0
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_idle_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_idle_bytes = 0
        self._in_body = False
        self.scope["state"]["arrived_s"] = time.monotonic()  # from here on it may wait for its turn of the loop
        super().on_message_complete()

    def _expect_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout_s, self.transport.close)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _is_read(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


def _without_upgrade(data: bytes) -> bytes:
    """A head without its offer of another protocol, such as Java's client makes for HTTP/2: nobody need take it.

    The parser would leave out the body behind it.
    """
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"x-upgrade", head) + end + rest


class HttpServer:
    """Serves an app until it is stopped."""

    def __init__(self, app: ASGIApp, host: str, port: int, head_timeout_s: float) -> None:
        """Binds; raises ConfigError where nobody can listen there."""
        self._socket = _bound(host, port)
        protocol = type("BoundedProtocol", (_BoundedProtocol,), {"head_timeout_s": head_timeout_s})
        config = uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=_BACKLOG,
        )
        self._server = uvicorn.Server(config)
        self._task: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Takes connections from now on."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            await asyncio.sleep(0.005)
            if self._task.done():
                await self._task

    def stop_listening(self) -> None:
        """Takes no connection any more; requests that run go on, connections without one end."""
        self._server.should_exit = True

    async def stop(self, timeout_s: float) -> None:
        """Ends when the requests that run have; those that haven't in `timeout_s` are cut off."""
        self._server.should_exit = True
        if self._task is not None:
            done, _ = await asyncio.wait((self._task,), timeout=timeout_s)
            if not done:
                self._server.force_exit = True
                for connection in list(self._server.server_state.connections):
                    connection.transport.abort()  # its request ends as if its client had left
                await asyncio.wait((self._task,), timeout=timeout_s)
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ConfigError(f"can't listen on host {host!r}, port {port}: {error}") from None
    bound.set_inheritable(True)
    return bound


def check_port(host: str, port: int) -> None:
    """Raises ConfigError where nobody can listen there."""
    _bound(host, port).close()
