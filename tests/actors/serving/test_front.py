"""A front from its start to its end, on a port of its own, over an engine whose every token is known beforehand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from penstock.actors.async_engine import AsyncEngine
from penstock.actors.serving import front as front_module
from penstock.actors.serving.auth import Keys
from penstock.actors.serving.errors import ApiError
from penstock.actors.serving.front import Front
from penstock.actors.serving.metrics import ServingMetrics
from penstock.configs.serving import ServeConfig
from penstock.errors import ConfigError
from penstock.scheduler.messages import NewRequest, TokenEvent

from ..fake_engine import FakeEngine, desk_of, echo, spoken
from .live_server import free_port
from .served import COMPLETIONS, Connection


def silent(request: NewRequest) -> list[TokenEvent]:
    return []


def front_of(engine: FakeEngine, keys: Keys | None = None, **settings: Any) -> tuple[Front, str]:
    """A front that doesn't listen yet, and its URL."""

    async def healthy() -> None:
        pass

    async def exposition() -> str:
        return ""

    serving = ServeConfig(served_model_name="demo", port=free_port(), **settings)
    face = AsyncEngine(engine, desk_of(engine))  # type: ignore[arg-type]
    metrics = ServingMetrics("r1", "demo")
    front = Front(face, engine.config, serving, metrics, keys=keys or Keys([]), health=healthy, expositions=exposition)
    return front, f"http://127.0.0.1:{serving.port}"


@asynccontextmanager
async def running(engine: FakeEngine, **settings: Any) -> AsyncIterator[tuple[Front, httpx.AsyncClient]]:
    front, url = front_of(engine, **settings)
    await front.start()
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield front, client


async def asked(engine: FakeEngine) -> None:
    while not engine.requests:
        await asyncio.sleep(0.005)


def test_what_runs_comes_to_its_end_and_nothing_new_is_taken() -> None:
    async def drain() -> str:
        engine = FakeEngine(silent)
        async with running(engine) as (front, client):
            assert (await client.get("/health")).status_code == 200
            asking = asyncio.ensure_future(client.post(COMPLETIONS, json={"prompt": "a"}))
            await asked(engine)
            ending = asyncio.ensure_future(front.end())
            await asyncio.sleep(0.1)  # so that a drain that did not wait would have cut it off
            with pytest.raises(ApiError, match="shutting down"):
                await front.check_health()
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient() as late:
                    await late.get(f"{client.base_url}/health")
            for event in spoken(engine.requests[0], "x"):
                engine.say(event)
            await ending
            assert engine.aborted == []
            return str((await asking).json()["choices"][0]["text"])

    assert asyncio.run(drain()) == "x"


def test_what_does_not_end_in_the_time_for_it_is_cut_off() -> None:
    async def drain() -> float:
        engine = FakeEngine(silent)
        async with running(engine, drain_timeout_s=0.1) as (front, client):
            asking = asyncio.ensure_future(client.post(COMPLETIONS, json={"prompt": "a"}))
            await asked(engine)
            start_s = time.monotonic()
            await front.end()
            with pytest.raises(httpx.HTTPError):
                await asking
            assert engine.aborted == [engine.requests[0].request_id]
            return time.monotonic() - start_s

    assert asyncio.run(drain()) < 5


def test_through_serves_proxy_it_listens_nowhere_itself() -> None:
    async def ask() -> bytes:
        front, url = front_of(FakeEngine(echo), ingress="proxy")
        await front.start()
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{url}/health")
        connection = Connection.of(front.response(), COMPLETIONS, prompt="hallo")
        await connection.run()
        await front.end()
        return connection.answer

    assert b'"text":"hallo"' in asyncio.run(ask())


def test_it_asks_for_the_keys_that_it_was_given() -> None:
    async def ask() -> int:
        front, _ = front_of(FakeEngine(echo), Keys(["one"]), ingress="proxy")
        connection = Connection.of(front.response(), COMPLETIONS, prompt="a")
        await connection.run()
        await front.end()
        return connection.status

    assert asyncio.run(ask()) == 401


def test_a_parser_that_nobody_knows_ends_the_start() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        front_of(FakeEngine(), tool_call_parser="hermess")


def test_compiling_a_grammar_has_the_time_that_the_settings_give(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gate:
        def __init__(self, folder: str, vocab_size: int, timeout_s: float) -> None:
            given.append((vocab_size, timeout_s))

        async def check(self, spec: str) -> str | None:
            return None

    given: list[Any] = []
    monkeypatch.setattr(front_module, "GrammarGate", Gate)
    front_of(FakeEngine(), grammar_timeout_s=0.25)
    assert given == [(264, 0.25)]
