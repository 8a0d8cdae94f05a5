"""A progress line on stderr, for people: nothing is written where stderr is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType

_INTERVAL_S = 0.1
_WIDTH = 24


class Progress:
    """`done / total` requests with a bar, the generated tokens per second and the time left."""

    def __init__(self, total: int, enabled: bool = True) -> None:
        self._total = total
        self._enabled = enabled and sys.stderr.isatty()
        self._done = 0
        self._num_tokens = 0
        self._start_s = time.monotonic()
        self._drawn_s = 0.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._draw(time.monotonic())
            print(file=sys.stderr)

    def advance(self, num_tokens: int) -> None:
        """One request more is done; it generated so many tokens."""
        self._done += 1
        self._num_tokens += num_tokens
        now = time.monotonic()
        if self._enabled and now - self._drawn_s >= _INTERVAL_S:
            self._draw(now)

    def _draw(self, now: float) -> None:
        self._drawn_s = now
        elapsed = max(now - self._start_s, 1e-9)
        filled = _WIDTH * self._done // max(self._total, 1)
        left = f"{elapsed / self._done * (self._total - self._done):.0f} s left" if self._done else ""
        print(
            f"\r[{'#' * filled}{'.' * (_WIDTH - filled)}] {self._done}/{self._total} requests, "
            f"{self._num_tokens / elapsed:.0f} tokens/s {left}\x1b[K",
            end="",
            file=sys.stderr,
            flush=True,
        )
