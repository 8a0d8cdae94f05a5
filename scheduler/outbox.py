"""What clients are told: events of the steps, and what is kept of finished requests for a client that fell behind.

A finished request's token log is kept until `forget`. Should nobody forget, at most `KEPT_TOKENS` tokens are kept, and
the oldest logs go first.
"""

from __future__ import annotations

from collections import OrderedDict

from .messages import TokenEvent
from .request import Request

KEPT_TOKENS = 1 << 22


class Outbox:
    """Events not yet taken, and finished requests not yet forgotten."""

    def __init__(self) -> None:
        self.events: list[TokenEvent] = []
        self._finished: OrderedDict[tuple[str, str], Request] = OrderedDict()
        self.num_kept_tokens = 0  # of finished requests

    def take(self) -> list[TokenEvent]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events

    def refuse(self, client_id: str, request_id: str, error: str) -> None:
        """Answers a request that is not taken."""
        event = TokenEvent(client_id, request_id, 0, finish_reason="error", error=error)
        self.events.append(event)

    def keep(self, request: Request) -> None:
        """Keeps a finished request's log; none of the same key is kept, as its id was free when it came."""
        self._finished[request.key] = request
        self.num_kept_tokens += len(request.tokens)
        while self.num_kept_tokens > KEPT_TOKENS and len(self._finished) > 1:
            _, oldest = self._finished.popitem(last=False)
            self.num_kept_tokens -= len(oldest.tokens)

    def finished(self, key: tuple[str, str]) -> Request | None:
        """The finished request of that key, if it is still kept."""
        return self._finished.get(key)

    def forget(self, key: tuple[str, str]) -> None:
        """Its final event has been delivered."""
        request = self._finished.pop(key, None)
        if request is not None:
            self.num_kept_tokens -= len(request.tokens)

    def forget_client(self, client_id: str) -> None:
        """The client is gone."""
        for key in [key for key in self._finished if key[0] == client_id]:
            self.forget(key)
