"""Engines behind a router: which connections a front makes, and keeps."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from penstock.actors.serving import routed_engine
from penstock.actors.serving.routed_engine import RoutedEngine


@dataclass
class Engine:
    """A connection to an engine."""

    name: str
    is_dead: bool = False
    is_closed: bool = False

    def close(self) -> None:
        self.is_closed = True


class Router:
    """In the place of a deployment's handle, its method and its answer: every engine is the one of this name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hold = self

    def remote(self, prefix: list[bytes]) -> Router:
        return self

    def cancel(self) -> None:
        pass

    async def __anext__(self) -> str:
        return self.name


def test_a_connection_that_comes_when_nobody_waits_any_more_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may_come = threading.Event(), threading.Event()
    made: list[Engine] = []

    def connect(name: str) -> Engine:
        asked.set()
        may_come.wait(10)
        made.append(Engine(name))
        return made[-1]

    async def ask_and_leave() -> None:
        router: Any = Router("b")
        first: Any = Engine("a", is_dead=True)
        routed = RoutedEngine(router, first)
        asking = asyncio.create_task(routed.check_health())
        await asyncio.to_thread(asked.wait, 10)
        asking.cancel()
        await asyncio.wait([asking])
        may_come.set()
        await routed.check_health()
        await routed.check_health()
        assert first.is_closed

    monkeypatch.setattr(routed_engine, "connect", connect)
    asyncio.run(ask_and_leave())
    assert [engine.name for engine in made] == ["b"]
