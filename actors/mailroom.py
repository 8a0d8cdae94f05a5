"""Brings events from the client's thread to one event loop, many at a time.

A step of the engine brings an event for each of its requests; waking the loop once for all of them instead of once for
each is what lets one process hand out tens of thousands of tokens a second. Readers that have had nothing yet are woken
first: of all tokens of a step, the first ones are those that somebody waits for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from .frontdesk import Arrival


class Inbox:
    """The events of one reader; `post` from any thread, `take` on the loop."""

    def __init__(self, room: Mailroom) -> None:
        self._room = room
        self._arrivals: list[Arrival] = []
        self._filled = asyncio.Event()
        self.has_come = False  # something, ever

    def post(self, arrival: Arrival) -> None:
        """Hands an event to the loop."""
        self._room.post(self, arrival)

    def put(self, arrival: Arrival) -> None:
        """Wakes the reader, on the loop."""
        self.has_come = True
        self._arrivals.append(arrival)
        self._filled.set()

    async def take(self) -> list[Arrival]:
        """All that has come, at least one."""
        await self._filled.wait()
        self._filled.clear()
        arrivals, self._arrivals = self._arrivals, []
        return arrivals


class Mailroom:
    """All inboxes of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[tuple[Inbox, Arrival]] = deque()
        self._is_called = False  # whether `_sort` is on its way

    def inbox(self) -> Inbox:
        """A new reader's inbox."""
        return Inbox(self)

    def post(self, inbox: Inbox, arrival: Arrival) -> None:
        """From any thread; a loop that has ended has no reader for it."""
        self._posted.append((inbox, arrival))
        if not self._is_called:
            self._is_called = True
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._sort)

    def _sort(self) -> None:
        self._is_called = False  # before the first is taken: what comes later calls again
        posted = [self._posted.popleft() for _ in range(len(self._posted))]
        posted.sort(key=_has_come)
        for inbox, arrival in posted:
            inbox.put(arrival)


def _has_come(letter: tuple[Inbox, Arrival]) -> bool:
    return letter[0].has_come
