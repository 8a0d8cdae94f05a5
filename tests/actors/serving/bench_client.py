"""The protocol of `vllm bench serve`: streamed completions, as many at once as asked for, measured at the client.

Times are that program's: the first token is the first event with a choice, a request ends with its last such event, and
the number of its tokens is what the server's `usage` says.
usage: python -m penstock.tests.actors.serving.bench_client --port 8000 [--num-prompts 300] [--max-concurrency 64]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import uvloop
from pydantic_core import from_json

from .http_connection import Connection, ConnectionEndedError, EventReader

PATH = "/v1/completions"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request of the load."""

    text: str
    max_tokens: int


@dataclass(slots=True)
class Measured:
    """One request, as its client saw it; times in seconds of `perf_counter`."""

    prompt: Prompt
    start_s: float
    ttft_s: float = 0.0
    last_s: float = 0.0  # when the last event with a choice came
    itl_s: list[float] = field(default_factory=list)  # between two events
    usage: dict[str, Any] | None = None
    error: str | None = None
    events: EventReader = field(default_factory=EventReader)

    @property
    def e2e_s(self) -> float:
        """From the request to its last token."""
        return self.last_s - self.start_s

    @property
    def num_output_tokens(self) -> int:
        """As the server counts."""
        return 0 if self.usage is None else int(self.usage["completion_tokens"])

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first; 0 when there is none."""
        return (self.e2e_s - self.ttft_s) / max(1, self.num_output_tokens - 1)

    def take(self, part: bytes, now_s: float) -> None:
        """Reads a part of the stream."""
        for data in self.events.take(part):
            self._take_event(from_json(data), now_s)

    def _take_event(self, event: dict[str, Any], now_s: float) -> None:
        if event.get("choices"):
            if self.last_s:
                self.itl_s.append(now_s - self.last_s)
            else:
                self.ttft_s = now_s - self.start_s
            self.last_s = now_s
        self.usage = event.get("usage") or self.usage
        if "error" in event:
            self.error = str(event["error"])


@dataclass(frozen=True, slots=True)
class Report:
    """A run's figures."""

    duration_s: float
    num_completed: int
    num_failed: int
    num_prompt_tokens: int
    num_output_tokens: int
    output_tokens_per_s: float
    mean_ttft_ms: float
    median_ttft_ms: float
    mean_tpot_ms: float
    median_tpot_ms: float
    mean_itl_ms: float
    median_itl_ms: float
    p99_itl_ms: float
    mean_e2e_ms: float


def random_prompts(num_prompts: int, seed: int, max_tokens: tuple[int, int] = (16, 48)) -> list[Prompt]:
    """Sums to be done, and how many tokens each is to get."""
    draw = random.Random(seed)
    return [
        Prompt(
            " + ".join(str(draw.randrange(100)) for _ in range(draw.randint(2, 12))) + " =", draw.randint(*max_tokens)
        )
        for _ in range(num_prompts)
    ]


async def run(port: int, prompts: Sequence[Prompt], max_concurrency: int) -> tuple[list[Measured], float]:
    """Sends all prompts, so many at a time, on connections that are kept; what was measured, and how long it took."""
    waiting = iter(prompts)
    start_s = time.perf_counter()
    lanes = await asyncio.gather(*(_lane(port, waiting) for _ in range(max_concurrency)))
    duration_s = time.perf_counter() - start_s
    return [each for lane in lanes for each in lane], duration_s


async def _lane(port: int, waiting: Any) -> list[Measured]:
    """One connection's requests, one behind the other."""
    connection = await Connection.connect(port)
    done = list[Measured]()
    for prompt in waiting:
        if connection.transport.is_closing():
            connection = await Connection.connect(port)
        done.append(await _measure(connection, prompt))
    connection.close()
    return done


async def _measure(connection: Connection, prompt: Prompt) -> Measured:
    body = {
        "model": None,
        "prompt": prompt.text,
        "max_tokens": prompt.max_tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "logprobs": None,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    measured = Measured(prompt, time.perf_counter())
    try:
        status = await connection.post(PATH, body, measured.take)
    except ConnectionEndedError:
        measured.error = "the connection ended"
    else:
        if status != 200 or not measured.events.is_done:
            measured.error = measured.error or f"status {status}, done: {measured.events.is_done}"
    return measured


def report(requests: Sequence[Measured], duration_s: float) -> Report:
    """The figures of those that were served."""
    served = [each for each in requests if each.error is None]
    itl_ms = sorted(1000 * gap for each in served for gap in each.itl_s) or [0.0]
    ttft_ms, tpot_ms, e2e_ms = (
        [1000 * float(getattr(each, name)) for each in served] or [0.0] for name in ("ttft_s", "tpot_s", "e2e_s")
    )
    num_output_tokens = sum(each.num_output_tokens for each in served)
    return Report(
        duration_s=duration_s,
        num_completed=len(served),
        num_failed=len(requests) - len(served),
        num_prompt_tokens=sum(int((each.usage or {}).get("prompt_tokens", 0)) for each in served),
        num_output_tokens=num_output_tokens,
        output_tokens_per_s=num_output_tokens / duration_s,
        mean_ttft_ms=statistics.mean(ttft_ms),
        median_ttft_ms=statistics.median(ttft_ms),
        mean_tpot_ms=statistics.mean(tpot_ms),
        median_tpot_ms=statistics.median(tpot_ms),
        mean_itl_ms=statistics.mean(itl_ms),
        median_itl_ms=statistics.median(itl_ms),
        p99_itl_ms=itl_ms[len(itl_ms) * 99 // 100],
        mean_e2e_ms=statistics.mean(e2e_ms),
    )


def bench(port: int, prompts: Sequence[Prompt], max_concurrency: int) -> tuple[list[Measured], Report]:
    """A whole run, in an event loop of its own."""
    requests, duration_s = uvloop.run(run(port, prompts, max_concurrency))
    return requests, report(requests, duration_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--num-prompts", type=int, default=300)
    parser.add_argument("--max-concurrency", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    prompts = random_prompts(arguments.num_prompts, arguments.seed)
    requests, figures = bench(arguments.port, prompts, arguments.max_concurrency)
    for name, value in asdict(figures).items():
        print(f"{name:22} {value:12.2f}")
    for error in sorted({each.error for each in requests if each.error is not None}):
        print("failed:", error)


if __name__ == "__main__":
    main()
