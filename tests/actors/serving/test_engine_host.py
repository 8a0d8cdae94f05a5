"""The owner of an engine whose client has lost it: what it says of its health, and how it serves again. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from penstock.actors.async_engine import AsyncEngine
from penstock.actors.serving.engine_host import EngineHost
from penstock.actors.serving.metrics import ServingMetrics
from penstock.configs.sampling import SamplingParams
from penstock.errors import EngineDeadError
from penstock.scheduler.messages import NewRequest, TokenEvent

from ..fake_engine import FakeEngine, desk_of
from .served import turns

T = TypeVar("T")
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@dataclass
class Handle(FakeEngine):
    """An engine that lives or doesn't; each client is one of its own."""

    clients: list[FakeEngine] = field(default_factory=list)
    failure: str | None = None
    takes_clients: bool = True

    def client(self) -> FakeEngine:
        if not self.takes_clients:
            raise EngineDeadError("engine 'fake' doesn't take clients")
        self.clients.append(FakeEngine(self.script))
        return self.clients[-1]

    def health(self) -> None:
        if self.failure is not None:
            raise EngineDeadError(self.failure)


@asynccontextmanager
async def hosted(handle: Handle) -> AsyncIterator[EngineHost]:
    engine = AsyncEngine(handle, desk_of(handle))  # type: ignore[arg-type]
    host = EngineHost(handle, engine, ServingMetrics("r1", "demo"))  # type: ignore[arg-type]
    yield host
    await host.end()


async def said(host: EngineHost) -> str:
    outputs = [output async for output in host.engine.generate("ab", GREEDY)]
    return outputs[-1].outputs[0].text


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 10))


def test_a_client_that_has_lost_a_living_engine_makes_way_for_another_and_requests_are_served_again() -> None:
    async def lose() -> None:
        handle = Handle()
        async with hosted(handle) as host:
            await host.check_health()
            handle.clients[0].is_dead = True
            with pytest.raises(EngineDeadError):
                host.check_last_look()
            await asyncio.gather(*(host.check_health() for _ in range(3)))
            assert [client.num_closed for client in handle.clients] == [1, 0]
            host.check_last_look()
            assert await said(host) == "ab"

    run(lose())


def test_what_the_lost_client_owed_has_failed_with_the_engine_and_not_as_a_wrong_request() -> None:
    def silent(request: NewRequest) -> list[TokenEvent]:
        return []

    async def lose() -> None:
        handle = Handle(silent)
        async with hosted(handle) as host:
            asking = asyncio.ensure_future(said(host))
            await turns()
            (lost,) = handle.clients
            lost.is_dead = True
            lost.say(TokenEvent("", lost.requests[0].request_id, 0, finish_reason="error", error="silent for 5 s"))
            host.engine.rejoin()  # before the request's own reader has read of the end
            with pytest.raises(EngineDeadError, match="silent for 5 s"):
                await asking

    run(lose())


@pytest.mark.parametrize("state", [{"failure": "it hangs"}, {"takes_clients": False}])
def test_an_engine_that_does_not_answer_or_takes_no_client_is_unhealthy(state: dict[str, Any]) -> None:
    async def lose() -> None:
        handle = Handle()
        async with hosted(handle) as host:
            await host.check_health()
            handle.clients[0].is_dead = True
            for name, value in state.items():
                setattr(handle, name, value)
            for _ in range(2):
                with pytest.raises(EngineDeadError):
                    await host.check_health()
            with pytest.raises(EngineDeadError):
                host.check_last_look()
            assert len(handle.clients) == 1

    run(lose())
