"""Where a stage's time goes: work and waits by lane, totals always, single spans on request.

A span is (lane, step, name, start, end); times are `time.monotonic_ns()`, one clock for all processes of a host. A
wait's name is its cause. Only the compute lane's totals count as a stage's busy and idle time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from .device import Lane

now_ns = time.monotonic_ns


@dataclass(slots=True, frozen=True)
class Span:
    """One piece of work or one wait."""

    lane: Lane | Literal["host"]
    step: int
    name: str  # what the work makes ready, or "wait: " and the cause
    start_ns: int
    end_ns: int

    @property
    def is_wait(self) -> bool:
        return self.name.startswith("wait: ")

    def moved(self, offset_ns: int) -> Span:
        """The same on a clock that is so far ahead."""
        return Span(self.lane, self.step, self.name, self.start_ns + offset_ns, self.end_ns + offset_ns)


@dataclass(slots=True)
class StageTotals:
    """A stage's compute lane since the engine's start, in nanoseconds."""

    steps: int = 0
    busy_ns: int = 0
    first_start_ns: int = 0  # when the first step started, 0 before
    last_end_ns: int = 0
    host_ns: int = 0  # of the thread that launches steps, from the plan to the last launch
    wait_ns: dict[str, int] = field(default_factory=dict)  # by cause, of waits that have ended
    waiting_ns: int = 0  # for a plan since the last step's end, when the totals were asked for

    def since(self, earlier: StageTotals) -> StageTotals:
        """The totals of the time after `earlier` was taken."""
        waits = {cause: ns - earlier.wait_ns.get(cause, 0) for cause, ns in self.wait_ns.items()}
        return StageTotals(
            steps=self.steps - earlier.steps,
            busy_ns=self.busy_ns - earlier.busy_ns,
            first_start_ns=earlier.last_end_ns or self.first_start_ns,
            last_end_ns=self.last_end_ns,
            host_ns=self.host_ns - earlier.host_ns,
            wait_ns=waits,
        )

    @property
    def busy_share(self) -> float:
        """Busy time over the time from the first step's start to the last step's end; 0 before any step."""
        elapsed = self.last_end_ns - self.first_start_ns
        return self.busy_ns / elapsed if elapsed > 0 else 0.0


class Timeline:
    """Collects one rank's spans; written by its lane threads, each span by one thread."""

    def __init__(self, keep_spans: bool = False) -> None:
        self.keep_spans = keep_spans
        self.spans: list[Span] = []
        self.totals = StageTotals()
        self._num_launched = 0

    def work(self, lane: Lane, step: int, name: str, start_ns: int, end_ns: int) -> None:
        """Notes a piece of work that ran."""
        if lane == "compute":
            totals = self.totals
            totals.first_start_ns = totals.first_start_ns or start_ns
            totals.last_end_ns = end_ns
            totals.busy_ns += end_ns - start_ns
            totals.steps += 1
        if self.keep_spans:
            self.spans.append(Span(lane, step, name, start_ns, end_ns))

    def launched(self, step: int, start_ns: int, end_ns: int) -> None:
        """Notes how long the host took to prepare and launch a step."""
        self._num_launched += 1
        self.totals.host_ns += end_ns - start_ns
        if self.keep_spans:
            self.spans.append(Span("host", step, "launch", start_ns, end_ns))

    def wait(self, lane: Lane, step: int, cause: str, start_ns: int, end_ns: int) -> None:
        """Notes a wait; `step` is the step that waits."""
        if lane == "compute" and self.totals.steps:
            waits = self.totals.wait_ns
            waits[cause] = waits.get(cause, 0) + end_ns - start_ns
        if self.keep_spans:
            self.spans.append(Span(lane, step, f"wait: {cause}", start_ns, end_ns))

    def so_far(self) -> StageTotals:
        """The totals of this moment, the wait of a stage that has nothing to do included."""
        totals = replace(self.totals, wait_ns=dict(self.totals.wait_ns))
        if totals.steps and totals.steps >= self._num_launched:
            totals.waiting_ns = max(0, now_ns() - totals.last_end_ns)
        return totals


def write_chrome_trace(path: str | Path, stages: Mapping[str, Iterable[Span]]) -> None:
    """Writes the stages' spans in the Chrome trace format (open it in Perfetto): a process row for each stage.

    Each lane is a thread of its row; the compute lane, with a slice for each step, comes first, then the host's work.
    """
    events: list[dict[str, object]] = []
    lanes = ("compute", "host", "receive", "send", "token_receive", "token_send", "copy")
    for pid, (name, spans) in enumerate(stages.items()):
        events.append({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}})
        for tid, lane in enumerate(lanes):
            events.append({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": lane}})
        events += [_slice(pid, lanes.index(span.lane), span) for span in spans]
    Path(path).write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _slice(pid: int, tid: int, span: Span) -> dict[str, object]:
    label = span.name if span.is_wait else f"step {span.step}"
    return {
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "name": label,
        "cat": "wait" if span.is_wait else "work",
        "ts": span.start_ns / 1000,
        "dur": (span.end_ns - span.start_ns) / 1000,
        "args": {"step": span.step, "what": span.name},
    }
