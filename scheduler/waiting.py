"""The queue of requests that wait for a slot: first come first served, preempted ones at the front."""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from collections.abc import Iterator

from .request import Request, State


class WaitingQueue:
    """Requests by arrival. Whoever was preempted has been admitted once, so before all who never were."""

    def __init__(self) -> None:
        self._resuming: list[Request] = []
        self._new: OrderedDict[int, Request] = OrderedDict()
        self.num_tokens = 0  # known tokens of all that wait

    def __len__(self) -> int:
        return len(self._resuming) + len(self._new)

    def __iter__(self) -> Iterator[Request]:
        yield from self._resuming
        yield from self._new.values()

    def append(self, request: Request) -> None:
        """A new request joins at the end."""
        self._new[request.arrival] = request
        self.num_tokens += len(request.tokens)

    def resume(self, request: Request) -> None:
        """A preempted request joins the front, in order of arrival."""
        request.state = State.WAITING
        insort(self._resuming, request, key=arrival_of)
        self.num_tokens += len(request.tokens)

    def head(self) -> Request | None:
        """The next to be admitted."""
        if self._resuming:
            return self._resuming[0]
        return next(iter(self._new.values()), None)

    def remove(self, request: Request) -> None:
        """The request leaves: admitted or aborted."""
        if self._new.pop(request.arrival, None) is None:
            self._resuming.remove(request)
        self.num_tokens -= len(request.tokens)


def arrival_of(request: Request) -> int:
    """The key of every order among requests."""
    return request.arrival
