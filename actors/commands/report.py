"""The table at the end of a run: how much, how fast, and how busy each stage was."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..outputs import RequestOutput


@dataclass(slots=True)
class Report:
    """Figures of the finished requests; times in seconds."""

    start_s: float = field(default_factory=time.monotonic)
    num_requests: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    end_s: float = 0.0

    def add(self, output: RequestOutput) -> None:
        """Counts a finished request."""
        self.end_s = time.monotonic()
        self.num_requests += 1
        self.num_failed += output.error is not None
        self.num_prompt_tokens += len(output.prompt_token_ids)
        self.num_cached_tokens += output.num_cached_tokens
        self.num_tokens += output.num_generated_tokens
        self.ttft_s += [] if output.metrics.ttft_s is None else [output.metrics.ttft_s]
        self.tpot_s += [] if (tpot := output.tpot_s()) is None else [tpot]

    def table(self, stats: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> str:
        """The figures as lines of two columns."""
        seconds = max(self.end_s - self.start_s, 1e-9)
        failed = f" ({self.num_failed} refused)" if self.num_failed else ""
        cached = f" ({self.num_cached_tokens} from the cache)" if self.num_cached_tokens else ""
        rows = {
            "requests": f"{self.num_requests}{failed}",
            **(extra or {}),
            "prompt tokens": f"{self.num_prompt_tokens}{cached}",
            "generated tokens": f"{self.num_tokens}",
            "tokens/s": f"{self.num_tokens / seconds:.0f} over {seconds:.2f} s",
            "TTFT": _median_and_p99(self.ttft_s),
            "TPOT": _median_and_p99(self.tpot_s),
        }
        for index, stage in enumerate(stats.get("stages", ())):
            rows[f"stage {index} busy"] = f"{stage['busy_share']:.0%}"
        width = max(map(len, rows))
        return "\n".join(f"{name:{width}}  {value}" for name, value in rows.items())


def _median_and_p99(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    median, p99 = np.percentile(seconds, (50, 99)) * 1000
    return f"median {median:.1f} ms, p99 {p99:.1f} ms"
