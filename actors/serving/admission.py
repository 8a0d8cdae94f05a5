"""How much a replica takes on: open requests and their tokens, running and queued together.

Past a bound a request is refused at once with 429; nothing waits in front of the engine's own queue.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...configs.serving import ServeConfig
from .errors import ApiError, refused

_MAX_BODIES = 32  # of the greatest size, that may be read and parsed at once


class Admission:
    """Counts what is open. For one event loop."""

    def __init__(self, config: ServeConfig) -> None:
        self._max_requests = config.max_open_requests
        self._max_tokens = config.max_open_tokens
        self._max_bytes = _MAX_BODIES * config.max_body_bytes
        self.num_requests = 0
        self.num_tokens = 0
        self.num_bytes = 0  # of bodies that are being read and parsed
        self.is_draining = False

    @contextmanager
    def admitted(self, num_requests: int, num_tokens: int) -> Iterator[None]:
        """Holds so many sequences and tokens (prompts and most outputs); raises as `check`."""
        self.check(num_requests, num_tokens)
        self.num_requests += num_requests
        self.num_tokens += num_tokens
        try:
            yield
        finally:
            self.num_requests -= num_requests
            self.num_tokens -= num_tokens

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Counts a body while it is read and parsed; what it gives takes so many bytes more, or raises ApiError 429."""
        size = 0

        def take(num_bytes: int) -> None:
            nonlocal size
            if self.num_bytes + num_bytes > self._max_bytes:
                raise _full(f"{self.num_bytes} bytes of requests are being read, at most {self._max_bytes} may be")
            self.num_bytes += num_bytes
            size += num_bytes

        try:
            yield take
        finally:
            self.num_bytes -= size

    def check(self, num_requests: int, num_tokens: int = 0) -> None:
        """Raises ApiError 429 where they are too many now, 400 where they always are, and 503 while draining."""
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", kind="server_error", code="draining")
        for what, held, more, limit in (
            ("requests", self.num_requests, num_requests, self._max_requests),
            ("tokens", self.num_tokens, num_tokens, self._max_tokens),
        ):
            if more > limit:
                raise refused(f"the request comes to {more} {what}; at most {limit} may be open together")
            if held + more > limit:
                raise _full(f"{held} {what} are open, {more} more would pass the limit of {limit}")


def _full(why: str) -> ApiError:
    return ApiError(429, f"the server is full: {why}", kind="rate_limit_error", code="rate_limit_exceeded")
