"""The engine's side of one client: requests in, token events out, and which requests a slow client is behind on.

The engine never waits for a client. Of a request whose events a full socket doesn't take, only the first missing token
is noted; when the socket takes messages again, one event made from the scheduler's token log tells the rest.
"""

from __future__ import annotations

from typing import Protocol

import zmq

from ..scheduler.messages import TokenEvent
from .sockets import Receiver, Sender
from .wire import Kind, encode_events, encode_text, frame

MAX_EVENT_FRAMES = 256  # that wait for a client
MAX_REQUEST_FRAMES = 16384  # that wait for the engine
_REQUESTS_PER_FRAME = 64  # of one catching-up message
_KEEPALIVE = frame(Kind.KEEPALIVE)


class TokenLog(Protocol):
    """What the scheduler remembers of a client's requests."""

    def catch_up(self, client_id: str, request_id: str, start: int) -> TokenEvent | None:
        """All from output token `start` on, as one event."""
        ...

    def forget(self, client_id: str, request_id: str) -> None:
        """The request's final event has been delivered."""
        ...


class ClientPort:
    """One client's pair of sockets."""

    def __init__(self, client_id: str, requests: Receiver, events: Sender, log: TokenLog) -> None:
        self.client_id = client_id
        self.requests = requests
        self.events = events
        self.last_heard = 0.0  # on the engine's clock
        self._log = log
        self._behind: dict[str, TokenEvent] = {}  # by request id: the first event not sent, or the error that ended it
        self._failure: str | None = None  # the engine's end
        self._farewell: bytes | None = None  # the news of it, until the socket takes it

    @property
    def is_behind(self) -> bool:
        """Whether something waits for the socket to take messages again."""
        return bool(self._behind) or self._farewell is not None

    def deliver(self, events: list[TokenEvent]) -> None:
        """Sends a step's events, or notes that the client is behind on these requests."""
        if self.is_behind or not self._send(events):
            for event in events:
                self._note(event)

    def catch_up(self) -> None:
        """Sends what the client is behind on, as far as the socket takes it."""
        while self._behind and self.events.zmq_socket.poll(0, zmq.POLLOUT):
            request_ids = list(self._behind)[:_REQUESTS_PER_FRAME]
            events = [self._missing(self._behind[request_id]) for request_id in request_ids]
            if not self._send(events):
                return
            for request_id in request_ids:
                del self._behind[request_id]
        if not self._behind and self._farewell is not None and self.events.send(self._farewell):
            self._farewell = None

    def keep_alive(self) -> None:
        """Tells the client that the engine lives; left out while the socket is full."""
        self.events.send(_KEEPALIVE)

    def say_failed(self, message: str) -> None:
        """Tells the client that the engine has ended, after everything else; by that it ends what is open."""
        self._failure = message
        self._farewell = frame(Kind.FAILED, encode_text(message))
        self.catch_up()

    def close(self) -> None:
        """Ends both pairs; what waits is dropped."""
        self.requests.close()
        self.events.close()

    def _send(self, events: list[TokenEvent]) -> bool:
        if not self.events.send(frame(Kind.EVENTS, encode_events(events))):
            return False
        for event in events:
            if event.finish_reason is not None:
                self._log.forget(event.client_id, event.request_id)
        return True

    def _note(self, event: TokenEvent) -> None:
        first = self._behind.setdefault(event.request_id, event)
        if event.error is not None:  # the log knows nothing of a request that was refused
            event.start = first.start
            self._behind[event.request_id] = event

    def _missing(self, first: TokenEvent) -> TokenEvent:
        event = self._log.catch_up(first.client_id, first.request_id, first.start) or first
        if self._failure is not None and event.error == self._failure:  # the farewell says it, and whose fault it is
            event.finish_reason = event.error = None
        return event
