"""Hostile requests against a real server: it goes on, and whoever is served beside them notices nothing."""

from __future__ import annotations

import asyncio
import os
from collections import Counter

import pytest
from pydantic_core import from_json

from ..rig import eventually
from .hostile import Attack, attacks, carry_out, post
from .http_connection import Connection, EventReader
from .live_server import LiveServer

NUM_AT_ONCE = 8
ALLOWED = {None, 200, 400, 401, 404, 405, 408, 413, 429}
STREAM = {"prompt": "12 + 30 =", "max_tokens": 40, "temperature": 0, "ignore_eos": True, "stream": True}
GRAMMAR = b'{"prompt": "a", "max_tokens": 8, "structured_outputs": {"choice": ["yes", "no"]}}'


async def read_stream(port: int) -> list[int]:
    """The tokens of a valid greedy stream."""
    events, tokens = EventReader(), list[int]()
    connection = await Connection.connect(port)

    def take(part: bytes, now_s: float) -> None:
        for data in events.take(part):
            tokens.extend(from_json(data)["choices"][0]["token_ids"])

    assert await connection.post("/v1/completions", STREAM | {"return_token_ids": True}, take) == 200
    connection.close()
    return tokens


async def attack(server: LiveServer, seed: int, count: int, num_grammars: int) -> Counter[int | None]:
    """The statuses; asserts that none is a failure, that none waits for ever, and that a stream beside is as alone."""
    statuses: Counter[int | None] = Counter()
    waiting = list(attacks(seed, count, num_grammars))[::-1]
    alone = await read_stream(server.port)
    assert len(alone) == STREAM["max_tokens"]

    async def attacker() -> None:
        while waiting:
            each: Attack = waiting.pop()
            try:
                status = await carry_out(server.port, each)
            except TimeoutError:
                raise AssertionError(f"no answer and no end: {each.kind}, {each.pieces[0][:500]!r}") from None
            assert status in ALLOWED, f"{status}: {each.kind}, {each.pieces[0][:1000]!r}"
            statuses[status] += 1

    async def beside() -> None:
        while waiting:
            assert await read_stream(server.port) == alone

    await asyncio.gather(beside(), *(attacker() for _ in range(NUM_AT_ONCE)))
    assert await read_stream(server.port) == alone
    return statuses


def num_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_idle(server: LiveServer) -> bool:
    figures = server.metrics()
    return figures["requests_running"] == 0 and figures["requests_waiting"] == 0


def check(server: LiveServer, seed: int, count: int, num_grammars: int) -> None:
    valid = Attack("valid", [post("/v1/completions", GRAMMAR)])
    assert asyncio.run(carry_out(server.port, valid)) == 200  # what is made with the first grammar is there
    pid = server.pid_of("ray::ServeReplica")
    before = num_files(pid)
    statuses = asyncio.run(attack(server, seed, count, num_grammars))
    assert min(statuses[200], statuses[400]) > count // 20, statuses
    eventually(lambda: is_idle(server))
    assert asyncio.run(carry_out(server.port, valid)) == 200
    eventually(lambda: num_files(pid) <= before)
    assert server.pid_of("ray::ServeReplica") == pid
    assert server.get("/health")


def test_hostile_requests_harm_nobody(demo_server: LiveServer) -> None:
    check(demo_server, seed=4, count=150, num_grammars=3)


@pytest.mark.slow
def test_two_thousand_hostile_requests_harm_nobody(demo_server: LiveServer) -> None:
    check(demo_server, seed=5, count=2000, num_grammars=100)
