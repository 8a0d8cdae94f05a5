"""Work that many ask for at once is done once."""

from __future__ import annotations

import asyncio

import pytest

from penstock.actors.serving.shared import Shared


class Work:
    """Ends when its gate opens; says how often it was begun."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.num_begun += 1
        number = self.num_begun
        await self.gate.wait()
        if number == 2:
            raise ValueError("the second")
        return number


def test_who_asks_meanwhile_gets_the_same_and_who_asks_later_gets_it_anew() -> None:
    async def ask() -> None:
        work = Work()
        shared = Shared(work)
        asking = [asyncio.create_task(shared()) for _ in range(5)]
        await asyncio.sleep(0)
        asking[0].cancel()  # who began it
        work.gate.set()
        assert await asyncio.gather(*asking[1:]) == [1] * 4
        assert asking[0].cancelled()
        with pytest.raises(ValueError, match="the second"):
            await shared()
        assert await shared() == 3

    asyncio.run(ask())
