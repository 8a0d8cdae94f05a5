"""Who is dead or hung: heartbeats of the workers, and what they retire.

Judged by a clock that stands still while the observer itself doesn't run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .worker_port import WorkerPort

_LONGEST_STEP_S = 0.5


class ObserverClock:
    """Seconds that the observer has been awake.

    A process that was stopped, or whose machine slept, must not blame its peers for the silence of that time: a gap
    between two readings counts as half a second at most.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._last = monotonic()
        self.now = 0.0

    def tick(self) -> float:
        """The time now; read it at least every half second."""
        reading = self._monotonic()
        self.now += min(reading - self._last, _LONGEST_STEP_S)
        self._last = reading
        return self.now


class Progress:
    """Judges whether steps go on: a stage whose threads still beat can hang within a step all the same.

    Few plans are un-retired, so a stage that hangs soon holds all others up: judged is the pipeline as a whole.
    """

    def __init__(self, workers: Sequence[WorkerPort], step_timeout_s: float) -> None:
        self._workers = workers
        self._timeout_s = step_timeout_s
        self._retired: list[int] = []  # by worker, at the last change
        self._since = 0.0

    def verdict(self, now: float, last_published_step: int) -> str | None:
        """Names the first stage that holds the oldest step, when nothing has moved for too long; else None."""
        retired = [worker.last_retired_step for worker in self._workers]
        if retired != self._retired or min(retired) >= last_published_step:
            self._retired, self._since = retired, now
        if now - self._since <= self._timeout_s:
            return None
        holder = self._workers[retired.index(min(retired))]
        return f"{holder.name} has not ended step {min(retired) + 1} for {now - self._since:.1f} s: hung"


class Watch:
    """Judges the workers. A failure that one reports may be another's death seen from a neighbour, so a report waits
    a moment for the silence that explains it."""

    def __init__(self, workers: Sequence[WorkerPort], heartbeat_interval_s: float, timeout_s: float) -> None:
        self._workers = workers
        self._timeout_s = timeout_s
        self._explain_s = min(3 * heartbeat_interval_s, timeout_s)
        self._reports: list[str] = []
        self._first_report: float | None = None

    def report(self, worker: WorkerPort, text: str, now: float) -> None:
        """Notes that a worker says it can't go on."""
        self._reports.append(f"{worker.name} failed: {text}")
        if self._first_report is None:
            self._first_report = now

    def verdict(self, now: float) -> str | None:
        """Why the engine has failed; None while it has not."""
        for worker in self._workers:
            if now - worker.last_heard > self._timeout_s:
                return "; ".join([self._silence(worker, now), *self._reports])
        if self._first_report is None or now - self._first_report < self._explain_s:
            return None
        silent = [w for w in self._workers if now - w.last_heard > 0.75 * self._explain_s]
        return "; ".join([self._silence(w, now) for w in silent] + self._reports)

    def _silence(self, worker: WorkerPort, now: float) -> str:
        return f"{worker.name} sent no heartbeat for {now - worker.last_heard:.1f} s: dead or hung"
