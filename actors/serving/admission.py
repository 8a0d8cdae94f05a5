"""How much a front takes on: open requests and their tokens, running and queued together, over all its engines.

Past a bound a request is refused at once with 429; nothing waits in front of the engines' own queues. Tokens count once
they are held here: those of a prompt from its arrival, those of an output as they come. What outputs may still come to
needs no count: the engines' KV caches bound what runs at once, and each request alone is held to one engine's bound,
since it keeps the outputs of its finished sequences until its last one ends.
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
        self._max_requests = config.max_open_requests  # of each engine, as the next
        self._max_tokens = config.max_open_tokens
        self._num_engines = config.max_engines
        self._max_bytes = _MAX_BODIES * config.max_body_bytes
        self.num_requests = 0
        self.num_tokens = 0
        self.num_bytes = 0  # of bodies that are being read and parsed
        self.is_draining = False

    @contextmanager
    def admitted(self, num_requests: int, num_tokens: int, most_tokens: int) -> Iterator[Callable[[int], None]]:
        """Holds so many sequences and tokens; what it gives takes so many tokens more. Raises as `check`."""
        self.check(num_requests, num_tokens, most_tokens)
        num_held = 0

        def take(num_tokens: int) -> None:
            nonlocal num_held
            num_held += num_tokens
            self.num_tokens += num_tokens

        self.num_requests += num_requests
        take(num_tokens)
        try:
            yield take
        finally:
            self.num_requests -= num_requests
            self.num_tokens -= num_held

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

    def check(self, num_requests: int, num_tokens: int = 0, most_tokens: int = 0) -> None:
        """Raises ApiError 429 where they are too many now, 400 where they always are, and 503 while draining.

        `most_tokens` is what the request's tokens may come to.
        """
        if self.is_draining:
            raise ApiError(503, "the server is shutting down", kind="server_error", code="draining")
        for what, held, more, most, limit in (
            ("requests", self.num_requests, num_requests, num_requests, self._max_requests),
            ("tokens", self.num_tokens, num_tokens, most_tokens, self._max_tokens),
        ):
            if most > limit:  # it runs on one engine
                raise refused(f"the request comes to {most} {what}; at most {limit} may be open together")
            if held + more > limit * self._num_engines:
                raise _full(f"{held} {what} are open, {more} more would pass the limit of {limit * self._num_engines}")


def _full(why: str) -> ApiError:
    return ApiError(429, f"the server is full: {why}", kind="rate_limit_error", code="rate_limit_exceeded")
