"""One replica's figures: what its HTTP server saw, and what its engine tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .metric_board import Board
from .metric_engine import EngineObserver
from .metric_table import Metric


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A prompt that was served to its end, as its client knows it; with several completions, all of them together."""

    request_id: str
    endpoint: str  # the route, "/v1/completions"
    num_prompt_tokens: int
    num_cached_tokens: int  # of the prompt, found in the prefix cache
    num_output_tokens: int
    finish_reason: str  # "abort": its client left; "error": the engine failed it
    ttft_s: float | None  # None: it had no token
    tpot_s: float | None  # None: it had one at most
    e2e_s: float
    status: int  # of HTTP


class ServingMetrics:
    """For any thread."""

    def __init__(self, replica: str, model: str) -> None:
        """Inside a Ray cluster, Ray's exporters carry the same figures."""
        self._board = Board(replica, model)
        self._engine = EngineObserver(self._board)

    def arrived(self, num_prompts: int) -> None:
        """A request of so many prompts was taken in; each of them finishes once."""
        self._board.feed(Metric.ADMITTED, num_prompts)

    def refused(self, status: int) -> None:
        """A request is answered with an error of HTTP, before it was taken in."""
        self._board.feed(Metric.REFUSED, 1, str(status))

    def finished(self, record: FinishedRequest) -> None:
        """A prompt was served. The whole time of one that was cut off says nothing of the engine, and isn't counted."""
        self._board.feed(Metric.FINISHED, 1, record.finish_reason)
        if record.ttft_s is not None:
            self._board.feed(Metric.TTFT, record.ttft_s)
        if record.tpot_s is not None:
            self._board.feed(Metric.TPOT, record.tpot_s)
        if record.finish_reason not in ("abort", "error"):
            self._board.feed(Metric.E2E, record.e2e_s)

    def observe_engine(self, stats: dict[str, Any]) -> None:
        """Takes in what the engine's `stats()` gave, before `render` or now and then."""
        self._engine.observe(stats)

    def render(self) -> str:
        """This replica's figures as Prometheus' text exposition."""
        return self._board.render()
