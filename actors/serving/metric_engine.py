"""From an engine's figures, which count since its start, to metrics.

Counters only ever grow: what each process has told before is remembered by its pid, so that figures that come late, or
again, add nothing, and a stage or an engine that was started anew adds to what its predecessor did.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import Any

from .metric_board import Board
from .metric_table import Metric

_MIN_WINDOW_S = 1.0  # shorter looks give a share that jumps
_COUNTERS = {
    Metric.PROMPT_TOKENS: "num_prompt_tokens",
    Metric.GENERATION_TOKENS: "num_generated_tokens",
    Metric.PREFIX_QUERIES: "num_prefix_query_tokens",
    Metric.PREFIX_HITS: "num_prefix_hit_tokens",
    Metric.PREEMPTIONS: "num_preemptions",
    Metric.STEPS: "num_steps",
}


class EngineObserver:
    """Takes an engine's `stats()` in, whenever they come. For any thread."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lock = Lock()  # two scrapers may look at once
        self._told: dict[tuple[int, Metric | str, tuple[str, ...]], float] = {}  # by pid, what, labels
        self._looks: dict[str, tuple[int, float, float]] = {}  # by stage: pid, the engine's uptime, busy seconds

    def observe(self, stats: dict[str, Any]) -> None:
        """Passes on what is new. Whatever a stage did not tell in time is left out, and made up for the next time."""
        with self._lock:
            self._observe(int(stats["pid"]), stats)

    def _observe(self, pid: int, stats: dict[str, Any]) -> None:
        if not self._gain(pid, "uptime", (), stats["uptime_s"]):
            return
        self._show_moment(stats["scheduler"])
        for metric, name in _COUNTERS.items():
            self._advance(pid, metric, stats["scheduler"][name])
        self._observe_queue_times(pid, stats["queue_time_s"])
        for stage_idx, figures in enumerate(stats["stages"]):
            if "busy_ns" in figures:
                self._observe_stage(str(stage_idx), figures, stats["uptime_s"])

    def _show_moment(self, scheduler: dict[str, Any]) -> None:
        held, free = scheduler["held_blocks"], scheduler["free_blocks"]
        self._board.feed(Metric.RUNNING, scheduler["running"])
        self._board.feed(Metric.WAITING, scheduler["waiting"])
        self._board.feed(Metric.PREFILLING, scheduler["prefilling"])
        self._board.feed(Metric.KV_CACHE_USAGE, held / (held + free))

    def _observe_stage(self, stage: str, figures: dict[str, Any], uptime_s: float) -> None:
        pid, busy_s = int(figures["pid"]), figures["busy_ns"] / 1e9
        self._advance(pid, Metric.STAGE_BUSY, busy_s, stage)
        waits = dict(figures["wait_ns"])
        waits["plan"] = waits.get("plan", 0) + figures["waiting_ns"]
        for cause, wait_ns in waits.items():
            self._advance(pid, Metric.STAGE_IDLE, wait_ns / 1e9, stage, cause)
        before = self._looks.get(stage)
        if before is None or before[0] != pid:
            share = figures["busy_share"]
        elif uptime_s - before[1] >= _MIN_WINDOW_S:
            share = (busy_s - before[2]) / (uptime_s - before[1])
        else:
            return
        self._looks[stage] = pid, uptime_s, busy_s
        self._board.feed(Metric.STAGE_SHARE, min(max(share, 0.0), 1.0), stage)

    def _observe_queue_times(self, pid: int, told: dict[str, Any]) -> None:
        counts = [int(self._gain(pid, f"queued {i}", (), count)) for i, count in enumerate(told["counts"])]
        total_s = self._gain(pid, "queued", (), told["total"])
        for value in spread(told["bounds"], counts, total_s):
            self._board.feed(Metric.QUEUE_TIME, value)

    def _advance(self, pid: int, metric: Metric, value: float, *labels: str) -> None:
        if gain := self._gain(pid, metric, labels, value):
            self._board.feed(metric, gain, *labels)

    def _gain(self, pid: int, what: Metric | str, labels: tuple[str, ...], value: float) -> float:
        """How much more the process tells than it ever did before."""
        before = self._told.get((pid, what, labels), 0.0)
        self._told[pid, what, labels] = max(before, value)
        return max(0.0, value - before)


def spread(bounds: list[float], counts: list[int], total: float) -> Iterator[float]:
    """Values with these counts by bucket and with this sum; a value above every bound counts as at most twice the last.

    Each lies in its bucket at the same share of the bucket's width, which is between 0 and 1 for the counts and the
    sum of any values. One value alone comes out as it is.
    """
    lows, highs = [0.0, *bounds], [*bounds, 2 * bounds[-1]]
    least = sum(count * low for count, low in zip(counts, lows, strict=True))
    most = sum(count * high for count, high in zip(counts, highs, strict=True))
    share = min(max((total - least) / (most - least), 1e-6), 1.0) if most > least else 0.0
    for count, low, high in zip(counts, lows, highs, strict=True):
        for _ in range(count):
            yield min(low + share * (high - low), high)
