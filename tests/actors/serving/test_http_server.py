"""What a connection may do before its request is there, over real sockets; the app behind says a word."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from penstock.actors.serving import http_server
from penstock.actors.serving.http_server import MAX_HEAD_BYTES, HttpServer, check_port
from penstock.errors import ConfigError

from .live_server import free_port

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n"


class App:
    """Answers with the path, when the body is there and the gate is open."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.set()
        body = scope["path"].encode()
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        await self.gate.wait()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(head_timeout_s: float = 30.0) -> AsyncIterator[tuple[HttpServer, App, int]]:
    app, port = App(), free_port()
    server = HttpServer(app, "127.0.0.1", port, head_timeout_s)
    await server.start()
    yield server, app, port
    await server.stop(1.0)


async def answer(port: int, *pieces: bytes, num_bytes: int = -1) -> bytes:
    """What comes back until the server closes, or so many bytes of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        read = reader.read() if num_bytes < 0 else reader.readexactly(num_bytes)
        return await asyncio.wait_for(read, 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


def test_a_request_may_come_in_many_pieces() -> None:
    async def ask() -> bytes:
        async with serving() as (_, _, port):
            request = HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nab"
            return await answer(port, *(request[at : at + 1] for at in range(len(request))))

    assert run(ask()).endswith(b"\r\n\r\n/ab")


def test_a_request_that_offers_another_protocol_is_served_in_this_one_with_its_body() -> None:
    body = b"a\nupgrade: b"
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEA\r\nUpgrade: h2c\r\n"
    head = HEAD + offer + b"Content-Length: %d\r\n\r\n" % len(body)

    async def ask() -> None:
        async with serving() as (_, app, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(2):
                app.entered.clear()
                writer.write(head)
                await app.entered.wait()
                writer.write(body)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                assert await reader.readexactly(1 + len(body)) == b"/" + body
            writer.close()

    run(ask())


def test_requests_that_follow_each_other_at_once_are_answered_in_order() -> None:
    async def ask() -> bytes:
        async with serving() as (_, _, port):
            last = b"GET /9 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            return await answer(port, b"".join(GET % at for at in range(9)) + last)

    got = run(ask())
    assert [part[:2] for part in got.split(b"\r\n\r\n")[1:]] == [b"/%d" % at for at in range(10)]


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a"),
        (HEAD + b"X: ", b"a"),
        (HEAD, b"X: a\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: a\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"a"),
        (CHUNKED + b"1;", b"a"),
    ],
    ids=["line", "header", "headers", "trailers", "trailer", "extension"],
)
def test_what_is_no_body_has_a_bound_wherever_it_stands(begin: bytes, more: bytes) -> None:
    async def send() -> bytes:
        async with serving() as (_, _, port):
            part = more * (MAX_HEAD_BYTES // len(more))
            return await answer(port, begin, *[part] * 16)

    assert b"200 OK" not in run(send())


@pytest.mark.parametrize("sent", [b"", HEAD, GET % 1 + b"GET /2"])
def test_a_head_that_does_not_come_ends_the_connection(sent: bytes) -> None:
    async def wait() -> bytes:
        async with serving(head_timeout_s=0.1) as (_, _, port):
            return await answer(port, sent)

    assert run(wait()).count(b"200 OK") == sent.count(b"\r\n\r\n")


def test_a_request_that_runs_is_no_head_that_does_not_come() -> None:
    async def wait() -> bytes:
        async with serving(head_timeout_s=0.1) as (_, app, port):
            app.gate.clear()
            asking = asyncio.ensure_future(answer(port, HEAD + b"Connection: close\r\n\r\n"))
            await asyncio.sleep(0.3)  # three times what a head may take
            app.gate.set()
            return await asking

    assert b"200 OK" in run(wait())


def test_an_answer_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server._BoundedProtocol, "stall_timeout_s", 0.1)
    has_gone = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sending = asyncio.ensure_future(send_on(send))
        await receive()
        sending.cancel()
        has_gone.set()

    async def send_on(send: Send) -> None:
        while True:
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})

    async def leave_unread() -> None:
        port = free_port()
        server = HttpServer(endless, "127.0.0.1", port, 30.0)
        await server.start()
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(GET % 1)
        await asyncio.wait_for(has_gone.wait(), 10)
        writer.close()
        await server.stop(1.0)

    run(leave_unread())


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET / HTTP/9.9\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        CHUNKED + b"zz\r\n",
        HEAD + b"X\x00: a\r\n\r\n",
    ],
)
def test_what_is_no_http_is_a_400_and_the_end(garbage: bytes) -> None:
    async def send() -> bytes:
        async with serving() as (_, _, port):
            return await answer(port, garbage)

    assert run(send()).startswith(b"HTTP/1.1 400")


def test_a_server_that_ends_lets_run_what_runs_and_closes_idle_connections() -> None:
    async def end() -> list[bytes]:
        async with serving() as (server, app, port):
            idle, idle_writer = await asyncio.open_connection("127.0.0.1", port)
            idle_writer.write(GET % 7)
            await idle.readuntil(b"/7")
            app.gate.clear()
            app.entered.clear()
            asking = asyncio.ensure_future(answer(port, GET % 1))
            await app.entered.wait()
            server.stop_listening()
            assert await idle.read() == b""
            with pytest.raises(OSError, match="Connect call failed"):
                await asyncio.open_connection("127.0.0.1", port)
            app.gate.set()
            idle_writer.close()
            return [await asking]

    (running,) = run(end())
    assert running.endswith(b"/1")


def test_a_request_that_does_not_end_is_cut_off_when_the_time_is_over() -> None:
    async def end() -> bytes:
        async with serving() as (server, app, port):
            app.gate.clear()
            app.entered.clear()
            asking = asyncio.ensure_future(answer(port, GET % 1))
            await app.entered.wait()
            await server.stop(0.05)
            return await asking

    assert b"200 OK" not in run(end())


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen on host '127.0.0.1', port {port}"):
            check_port("127.0.0.1", port)
