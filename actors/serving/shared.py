"""Work that is done once for all who ask for it at the same time, so that asking often costs no more than asking."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """For one event loop. Who stops waiting stops nobody else's work."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._doing: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What the work that is under way gives, or else new work; raises what it raises."""
        if self._doing is None or self._doing.done():
            self._doing = asyncio.create_task(self._do())
        return await asyncio.shield(self._doing)

    async def _do(self) -> T:
        return await self._work()
