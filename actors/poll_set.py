"""One poll over sockets and a waker, with a handler for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq

from .sockets import Waker


class PollSet:
    """For one thread; `wake` may be called from any."""

    def __init__(self) -> None:
        self._waker = Waker()
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], None]] = {}
        self.watch(self._waker.fileno(), self._waker.clear)

    def watch(self, source: Any, handler: Callable[[], None], flags: int = zmq.POLLIN) -> None:
        """Calls `handler` from `poll` when the socket or descriptor is ready."""
        self._handlers[source] = handler
        self._poller.register(source, flags)

    def unwatch(self, source: Any) -> None:
        """Forgets the socket; unknown ones are fine."""
        if self._handlers.pop(source, None) is not None:
            self._poller.unregister(source)

    def watches(self, source: Any) -> bool:
        """Whether the socket is in the set."""
        return source in self._handlers

    def poll(self, timeout_s: float) -> None:
        """Waits until something is ready, at most so long, and calls the handlers of what is."""
        whole_ms = -int(-timeout_s * 1000 // 1)  # rounded up: zmq counts whole milliseconds
        for ready, _ in self._poller.poll(whole_ms):
            if handler := self._handlers.get(ready):
                handler()

    def wake(self) -> None:
        """Ends the poll that runs now, or the next one."""
        self._waker.wake()

    def close(self) -> None:
        """Ends the waker; the sockets belong to others."""
        self._waker.close()
