"""Events on their way from the client's thread to their readers on the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any
from unittest.mock import sentinel

from penstock.actors.mailroom import Mailroom


def test_what_came_before_a_look_comes_together_and_in_order() -> None:
    async def take() -> list[Any]:
        inbox = Mailroom(asyncio.get_running_loop()).inbox()
        for name in ("first", "second", "third"):
            inbox.post(getattr(sentinel, name))
        return await asyncio.wait_for(inbox.take(), 5)

    assert asyncio.run(take()) == [sentinel.first, sentinel.second, sentinel.third]


def test_the_loop_is_woken_once_for_all_events_of_a_step() -> None:
    async def count() -> int:
        loop = asyncio.get_running_loop()
        room = Mailroom(loop)
        calls = []
        loop.call_soon_threadsafe = lambda *given, **also: calls.append(given)  # type: ignore[assignment,method-assign]
        for inbox in [room.inbox() for _ in range(64)]:
            inbox.post(sentinel.event)
        del loop.call_soon_threadsafe
        return len(calls)

    assert asyncio.run(count()) == 1


def test_who_waits_for_a_first_token_is_woken_first() -> None:
    async def wake() -> list[str]:
        room = Mailroom(asyncio.get_running_loop())
        old, new = room.inbox(), room.inbox()
        old.post(sentinel.before)
        await old.take()
        woken: list[str] = []

        async def read(inbox: Any, name: str) -> None:
            await inbox.take()
            woken.append(name)

        readers = [asyncio.create_task(read(old, "old")), asyncio.create_task(read(new, "new"))]
        await asyncio.sleep(0)
        for inbox in (old, new, old):
            inbox.post(sentinel.event)
        await asyncio.gather(*readers)
        return woken

    assert asyncio.run(wake()) == ["new", "old"]


def test_each_reader_gets_its_own() -> None:
    async def take() -> list[Any]:
        room = Mailroom(asyncio.get_running_loop())
        one, two = room.inbox(), room.inbox()
        two.post(sentinel.for_two)
        one.post(sentinel.for_one)
        return [await one.take(), await two.take()]

    assert asyncio.run(take()) == [[sentinel.for_one], [sentinel.for_two]]


def test_nothing_is_lost_between_many_threads_and_one_reader() -> None:
    async def take() -> list[Any]:
        inbox = Mailroom(asyncio.get_running_loop()).inbox()

        def send(first: int) -> None:
            for number in range(first, first + 1000):
                inbox.post(number)  # type: ignore[arg-type]

        threads = [threading.Thread(target=send, args=(1000 * at,)) for at in range(4)]
        for thread in threads:
            thread.start()
        taken: list[Any] = []
        while len(taken) < 4000:
            taken += await asyncio.wait_for(inbox.take(), 10)
        for thread in threads:
            thread.join()
        return taken

    taken = asyncio.run(take())
    assert sorted(taken) == list(range(4000))
    for at in range(4):  # each thread's in its order
        mine = [number for number in taken if number // 1000 == at]
        assert mine == sorted(mine)


def test_an_event_for_a_loop_that_has_ended_is_nobodys() -> None:
    async def leave() -> Any:
        return Mailroom(asyncio.get_running_loop()).inbox()

    asyncio.run(leave()).post(sentinel.event)
