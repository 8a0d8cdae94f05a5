"""Device time as host time: CUDA events on the clock of `time.monotonic_ns`.

An event's time is measured from an anchor, an event whose host time is known. Event distances are 32-bit floats of
milliseconds, exact to less than a microsecond within seconds, so the anchor moves along. The two clocks drift apart by
microseconds a second; a host that waited for an event knows it over at once, which corrects the anchor as it moves.
What is more than a drift is a host that came late.
"""

from __future__ import annotations

from typing import Protocol

import torch

from ...scheduler.timeline import now_ns

_MOVE_AFTER_NS = 1_000_000_000
_WAKE_NS = 10_000  # from an event's completion to the return of the host's wait for it
_MOST_DRIFT = 1e-4
_NEVER = 1 << 62


def timing_event() -> torch.cuda.Event:
    """An event that notes its time."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def is_over(event: torch.cuda.Event) -> bool:
    """Whether the device has come past the event."""
    return bool(event.query())  # type: ignore[no-untyped-call]


class Marked(Protocol):
    """Who has an event, and may use it again when nobody holds him."""

    end: torch.cuda.Event


class DeviceClock:
    """Host times of one device's events. Used by one thread."""

    def __init__(self) -> None:
        self._anchor = timing_event()
        self._anchor.record()
        self._anchor.synchronize()
        self._anchor_ns = now_ns()
        self._holder: Marked | None = None  # of the anchor
        self._least_lag_ns = _NEVER

    def ns(self, event: torch.cuda.Event) -> int:
        """When the completed event happened."""
        return self._anchor_ns + int(self._anchor.elapsed_time(event) * 1e6)

    def seen(self, marked: Marked, at_ns: int) -> None:
        """The host found the event completed at this time, having waited for it; moves the anchor now and then."""
        event_ns = self.ns(marked.end)
        self._least_lag_ns = min(self._least_lag_ns, at_ns - event_ns)
        since_ns = event_ns - self._anchor_ns
        if since_ns > _MOVE_AFTER_NS:
            drift_ns = min(self._least_lag_ns - _WAKE_NS, int(since_ns * _MOST_DRIFT))
            self._anchor, self._anchor_ns = marked.end, event_ns + drift_ns
            self._holder = marked
            self._least_lag_ns = _NEVER
