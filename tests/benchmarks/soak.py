"""A real server under mixed load for a long time: its memory stays, nothing is lost, counters add up.

Requests come at random moments, now and then many at once, at a pace that two cores bear. The last third of each period
is calm: nobody leaves and nothing is cut, so that the server's counters must have gained exactly what the clients have
counted. Then all is let come to its end, and the memory of every process of the server is noted. The memory at the end
is held against that after a third of the time.
usage: python tests/benchmarks/soak.py [--minutes 30] [--rate 8] [--max-growth 1.02] [--seed 0]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

import uvloop

from penstock.tests.actors.serving.live_server import LiveServer, live_server, resident_bytes
from penstock.tests.benchmarks.soak_load import CALM, MIXED, Load, Tally

FLAGS = ("--pipeline-parallel-size", "2", "--num-cpus", "4")
NUM_KV_BLOCKS = 96
MAX_OPEN = 48  # requests at once
BURST = 24
QUIET_TIMEOUT_S = 30.0
EXACT = ("prompt_tokens_total", "generation_tokens_total", "requests_admitted_total")


@dataclass(slots=True)
class Sample:
    """The server at rest."""

    at_s: float
    resident: dict[int, int]  # bytes by pid
    names: dict[int, str]
    metrics: dict[str, float]

    @property
    def total(self) -> int:
        """Bytes of all its processes."""
        return sum(self.resident.values())


@dataclass(slots=True)
class Soak:
    """One run."""

    server: LiveServer
    load: Load
    rate: float  # requests a second
    seed: int
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    async def run(self, minutes: float) -> None:
        """Mixed load, calm load and a look, again and again."""
        period_s = min(60.0, minutes * 60 / 6)
        start_s = time.monotonic()
        draw = random.Random(self.seed)
        self.samples.append(await self._look(start_s))
        for number in range(1, round(minutes * 60 / period_s) + 1):
            until_s = start_s + number * period_s
            await self._press(MIXED, until_s - period_s / 3, draw)
            before, counted = await self._look(start_s), _exact_counts(self.load.tally)
            await self._press(CALM, until_s, draw)
            self.samples.append(await self._look(start_s))
            self._compare(before, counted)
            self._tell()

    async def _press(self, kinds: dict[str, int], until_s: float, draw: random.Random) -> None:
        """Sends requests until then, and waits for the last of their answers."""
        running = set[asyncio.Task[None]]()
        while (left_s := until_s - time.monotonic()) > 0:
            for _ in range(BURST if draw.random() < 0.01 else 1):
                task = asyncio.create_task(self.load.one(kinds))
                running.add(task)
                task.add_done_callback(running.discard)
            await asyncio.sleep(min(left_s, draw.expovariate(self.rate)))
            while len(running) >= MAX_OPEN:
                await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        if running:
            await asyncio.wait(running)

    async def _look(self, start_s: float) -> Sample:
        """The server's figures once nothing runs any more."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        while True:
            metrics = await asyncio.to_thread(self.server.metrics)
            left = {name: metrics[name] for name in ("requests_running", "requests_waiting", "kv_cache_usage")}
            if not any(left.values()) and metrics["requests_admitted_total"] == _finished(metrics):
                break
            if time.monotonic() > deadline:
                self.problems.append(f"left behind after {QUIET_TIMEOUT_S:.0f} s: {left}")
                break
            await asyncio.sleep(0.1)
        names = self.server.processes()
        resident = {pid: resident_bytes(pid) for pid in names}
        return Sample(time.monotonic() - start_s, resident, names, metrics)

    def _compare(self, before: Sample, counted: Counter[str]) -> None:
        """What the server has counted since `before`, against what its clients have."""
        clients = _exact_counts(self.load.tally)
        clients.subtract(counted)
        now = self.samples[-1].metrics
        server = {name: now.get(name, 0) - before.metrics.get(name, 0) for name in {*clients, *EXACT}}
        for name, value in server.items():
            if value != clients[name]:
                self.problems.append(f"{name}: the server counted {value:g}, its clients {clients[name]}")

    def compare_all(self) -> None:
        """The whole run: within the bounds that leaving clients give."""
        tally, first, last = self.load.tally, self.samples[0].metrics, self.samples[-1].metrics
        for name, least, loose in (
            ("prompt_tokens_total", tally.num_prompt_tokens, tally.num_loose_prompt_tokens),
            ("generation_tokens_total", tally.num_output_tokens, tally.num_loose_output_tokens),
            ("requests_admitted_total", tally.reasons.total(), tally.num_left),
        ):
            value = last[name] - first[name]
            if not least <= value <= least + loose:
                self.problems.append(f"{name}: the server counted {value:g}, its clients {least} to {least + loose}")

    def _tell(self) -> None:
        sample, tally = self.samples[-1], self.load.tally
        by_name = Counter[str]()
        for pid, size in sample.resident.items():
            by_name[sample.names[pid]] += size
        processes = ", ".join(f"{name} {size >> 20}" for name, size in by_name.most_common(6))
        print(
            f"{sample.at_s:6.0f} s: {sample.total / (1 << 20):.1f} MiB ({processes}); "
            f"{tally.kinds.total()} requests, {tally.num_left} left, {tally.refused.total()} refused, "
            f"{tally.num_output_tokens} tokens, {sample.metrics['preemptions_total']:.0f} preemptions, "
            f"{len(tally.problems) + len(self.problems)} problems",
            flush=True,
        )

    def growth(self) -> tuple[float, dict[str, float]]:
        """Resident memory at the end by that after a third of the time: of all, and of each process that was there."""
        end = self.samples[-1]
        reference = min(self.samples, key=lambda sample: abs(sample.at_s - end.at_s / 3))
        each = {
            f"{end.names[pid]} {pid}": end.resident[pid] / size
            for pid, size in reference.resident.items()
            if pid in end.resident and size
        }
        return end.total / reference.total, each


def _exact_counts(tally: Tally) -> Counter[str]:
    """The clients' counts under the server's names."""
    counts = Counter({f'requests_finished_total{{finish_reason="{r}"}}': n for r, n in tally.reasons.items()})
    counts |= Counter({f'requests_refused_total{{status="{status}"}}': n for status, n in tally.refused.items()})
    counts["requests_admitted_total"] = tally.reasons.total()
    counts["prompt_tokens_total"] = tally.num_prompt_tokens
    counts["generation_tokens_total"] = tally.num_output_tokens
    return counts


def _finished(metrics: dict[str, float]) -> float:
    return sum(value for name, value in metrics.items() if name.startswith("requests_finished_total"))


def soak(
    minutes: float, rate: float, max_growth: float, seed: int, num_kv_blocks: int = NUM_KV_BLOCKS
) -> dict[str, object]:
    """A whole run; its figures, with everything that was wrong under "problems"."""
    with live_server(*FLAGS, "--num-kv-blocks", str(num_kv_blocks)) as server:
        run = Soak(server, Load(server.port, seed), rate, seed)
        uvloop.run(run.run(minutes))
        run.compare_all()
    growth, each = run.growth()
    if growth > max_growth:
        run.problems.append(f"resident memory grew to {growth:.4f} of what it was, at most {max_growth} is allowed")
    tally = run.load.tally
    return {
        "minutes": minutes,
        "growth": round(growth, 4),
        "growth_by_process": {name: round(value, 4) for name, value in each.items()},
        "mib": [round(sample.total / (1 << 20), 1) for sample in run.samples],
        "kinds": dict(tally.kinds),
        "finished": dict(tally.reasons),
        "refused": dict(tally.refused),
        "left": tally.num_left,
        "output_tokens": tally.num_output_tokens,
        "preemptions": run.samples[-1].metrics["preemptions_total"],
        "problems": [*tally.problems, *run.problems],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=8.0)
    parser.add_argument("--max-growth", type=float, default=1.02)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = soak(arguments.minutes, arguments.rate, arguments.max_growth, arguments.seed)
    print(json.dumps(figures))
    return 1 if figures["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
