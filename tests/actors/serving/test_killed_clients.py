"""Clients are killed in the middle of what they read: nothing of them is left, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic_core import from_json

from penstock.tests.actors.serving.insides import Insides, insides  # by the name that the server's processes know

from ..rig import eventually
from .http_connection import Connection, ConnectionEndedError, EventReader
from .live_server import LiveServer

CLIENT = Path(__file__).parent / "doomed_client.py"
NUM_AT_ONCE = 4
LONGEST_S = 0.5  # that a client lives
STREAM = {"prompt": "12 + 30 =", "temperature": 0, "ignore_eos": True, "stream": True}


@pytest.fixture(scope="module")
def inside(demo_server: LiveServer) -> Iterator[Insides]:
    asyncio.run(read_stream(demo_server.port))  # what is made with the first request is there
    with insides(demo_server) as inside:
        yield inside


async def read_stream(port: int, num_tokens: int = 60, leaves_after: int | None = None) -> str:
    """The text of a stream; with `leaves_after` it must break off after so many events."""
    events, texts = EventReader(), list[str]()
    connection = await Connection.connect(port)

    def take(part: bytes, now_s: float) -> None:
        texts.extend(from_json(data)["choices"][0]["text"] for data in events.take(part))
        if leaves_after is not None and len(texts) >= leaves_after:
            connection.close()

    try:
        await connection.post("/v1/completions", STREAM | {"max_tokens": num_tokens}, take)
    except ConnectionEndedError:
        assert leaves_after is not None
    assert events.is_done == (leaves_after is None)
    connection.close()
    return "".join(texts)


async def kill_clients(port: int, num_clients: int, seed: int) -> None:
    """Starts so many, a few at a time, and kills each at a random moment of its life."""
    draw = random.Random(seed)
    lives = iter([(seed * 1000 + number, draw.random() * LONGEST_S) for number in range(num_clients)])

    async def lane() -> None:
        for client_seed, life_s in lives:
            arguments = ("-I", "-S", str(CLIENT), str(port), str(client_seed))
            client = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
            assert client.stdout is not None
            assert await client.stdout.readline() == b"asked\n"
            await asyncio.sleep(life_s)  # the moment is the test's input
            client.send_signal(signal.SIGKILL)
            await client.wait()

    await asyncio.gather(*(lane() for _ in range(NUM_AT_ONCE)))


def ignore(part: bytes, now_s: float) -> None:
    pass


def num_fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_at_rest(server: LiveServer) -> Callable[[], bool]:
    """Whether no request holds anything any more, and each one that was taken in has been accounted for."""

    def holds() -> bool:
        figures = server.metrics()
        ended = sum(value for name, value in figures.items() if name.startswith("requests_finished_total"))
        held = (figures[name] for name in ("requests_running", "requests_waiting", "kv_cache_usage"))
        return not any(held) and ended == figures["requests_admitted_total"]

    return holds


def test_a_request_shows_while_it_runs(demo_server: LiveServer, inside: Insides) -> None:
    async def look() -> None:
        connection = await Connection.connect(demo_server.port)
        streaming = asyncio.create_task(connection.post("/v1/completions", STREAM | {"max_tokens": 450}, ignore))
        while not inside.check():
            await asyncio.sleep(0)
        assert ("_gone" in inside.tasks(), inside.num_answers()) == (True, 1)
        connection.close()
        with pytest.raises(ConnectionEndedError):
            await streaming

    asyncio.run(look())


@pytest.mark.parametrize("num_clients", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_of_killed_clients_nothing_is_left(demo_server: LiveServer, inside: Insides, num_clients: int) -> None:
    server = demo_server
    eventually(is_at_rest(server))
    alone = asyncio.run(read_stream(server.port))
    assert (inside.check(), inside.num_answers()) == (0, 0)
    fds = {pid: num_fds(pid) for pid in map(server.pid_of, ("ray::ServeReplica", "ray::_SchedulerActor"))}
    aborts = server.metrics().get('requests_finished_total{finish_reason="abort"}', 0)

    async def kill_beside_a_reader() -> list[str]:
        killing = asyncio.create_task(kill_clients(server.port, num_clients, seed=num_clients))
        texts = list[str]()
        while not killing.done():
            texts.append(await read_stream(server.port))
        await killing
        return texts

    assert set(asyncio.run(kill_beside_a_reader())) == {alone}
    eventually(is_at_rest(server))
    assert (inside.check(), inside.num_answers()) == (0, 0)
    eventually(lambda: not inside.tasks())
    eventually(lambda: all(num_fds(pid) <= before for pid, before in fds.items()))
    assert server.metrics()['requests_finished_total{finish_reason="abort"}'] >= aborts + num_clients // 2


def test_a_client_that_goes_away_aborts_its_request_at_once(demo_server: LiveServer) -> None:
    server = demo_server
    eventually(is_at_rest(server))
    before = server.metrics()["generation_tokens_total"]
    asyncio.run(read_stream(server.port, num_tokens=400, leaves_after=5))
    eventually(is_at_rest(server))
    after = server.metrics()["generation_tokens_total"]
    assert 5 <= after - before <= 100
    asyncio.run(read_stream(server.port, num_tokens=60))
    assert server.metrics()["generation_tokens_total"] == after + 60  # none was made for it since
