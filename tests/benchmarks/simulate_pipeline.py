"""The scheduler over stages that are not there: `python tests/benchmarks/simulate_pipeline.py [STAGES ...]`.

Plans are the real scheduler's; time is virtual. A stage's step takes what was measured of such a step
(`layer_times.json`: the line that `tests/gpu/profile_stage.py 9 grid` prints, of Qwen3-8B's layers on an H200), a hop
and the host's parts take constants, and a step waits for what it waits for in the engine: the stage's step before, the
activations, and the tokens that its rows continue. For choosing settings, and to foresee a pipeline of more GPUs than
are at hand: its figures are no measurement.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penstock.actors.commands.workloads import Request, make_workload
from penstock.configs.engine import EngineConfig
from penstock.model.gpu.buckets import MAX_TOKENS, decode_buckets
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.cost import TYPICAL, StepSample, StepShape, fit, shapes_to_measure
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import StepPlan, StepResult, ints
from penstock.scheduler.scheduler import Scheduler

VOCAB_SIZE, BLOCK_SIZE, MAX_LEN = 151936, 16, 4096
HOP_S = 0.025e-3
PLAN_S, RESULT_S = 0.3e-3, 0.3e-3  # from the scheduler to a stage's launch, and from the last step's end back
HOST_S = 0.35e-3  # of a stage's thread for a step
CLIENT_S = 0.7e-3  # from a token event to the client, and from the client to the scheduler


Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class LayerTimes:
    """What a layer and the head take, in seconds, between and beyond the shapes that were measured."""

    def __init__(self, path: Path) -> None:
        tables = json.loads(path.read_text())
        self._decodes = Table.of(tables["decodes"])
        self._mixed = Table.of(tables["mixed"])
        self._heads = Table.of({f"{rows} 0": us for rows, us in tables["heads"].items()})
        self._buckets = decode_buckets(1 << 30)

    def layer_s(self, num_decodes: int, context: int, num_prompt_tokens: int) -> float:
        """A layer's; steps of decodes are padded to their bucket, others of few tokens to 32."""
        length = context / max(1, num_decodes)
        if not num_prompt_tokens:
            return self._decodes.at(self._padded(num_decodes), length)
        total = num_decodes + num_prompt_tokens
        padded = -(-total // 32) * 32 if total <= MAX_TOKENS else total
        longer_s = self._decodes.at(num_decodes, length) - self._decodes.at(num_decodes, 400) if num_decodes else 0.0
        return self._mixed.at(num_decodes, padded - num_decodes) + longer_s

    def head_s(self, num_rows: int) -> float:
        """The head's, with greedy sampling."""
        return self._heads.at(self._padded(num_rows), 0)

    def _padded(self, rows: int) -> int:
        return next((bucket for bucket in self._buckets if bucket >= rows), rows)


@dataclass(slots=True)
class Table:
    """Times over two numbers, linear between the measured and beyond the last."""

    firsts: Floats
    seconds: Floats
    values: Floats  # [firsts, seconds] in s

    @classmethod
    def of(cls, times: dict[str, float]) -> Table:
        """Of "first second" to µs."""
        keys = [tuple(map(int, key.split())) for key in times]
        firsts, seconds = (sorted({key[i] for key in keys}) for i in range(2))
        values = [[times[f"{a} {b}"] * 1e-6 for b in seconds] for a in firsts]
        return cls(np.array(firsts, float), np.array(seconds, float), np.array(values))

    def at(self, first: float, second: float) -> float:
        """The time there."""
        columns = along(self.firsts, self.values, first)
        return float(along(self.seconds, columns, second)) if len(self.seconds) > 1 else float(columns[0])


def along(places: Floats, values: Floats, at: float) -> Floats:
    """The values at a place between two of the places, or beyond the last."""
    i = int(np.clip(np.searchsorted(places, at) - 1, 0, len(places) - 2))
    share = max(0.0, (at - places[i]) / (places[i + 1] - places[i]))
    return np.asarray(values[i] + share * (values[i + 1] - values[i]))


class StageTimes:
    """Of one stage: so many layers, perhaps the head."""

    def __init__(self, times: LayerTimes, num_layers: float, has_head: bool) -> None:
        self._times, self._num_layers, self._has_head = times, num_layers, has_head

    def of(self, num_decodes: int, context: int, num_prompt_tokens: int, num_sampled: int) -> float:
        """A step's time in seconds."""
        head_s = self._times.head_s(num_sampled) if self._has_head and num_sampled else 0.0
        return self._num_layers * self._times.layer_s(num_decodes, context, num_prompt_tokens) + head_s

    def of_shape(self, shape: StepShape) -> float:
        """A step's that samples once a row."""
        sampled = shape.num_decodes + (shape.num_prompt_tokens > 0)
        return self.of(shape.num_decodes, shape.context, shape.num_prompt_tokens, sampled)


@dataclass(slots=True)
class Figures:
    """What a run gave."""

    tokens_per_s: float
    ttft_ms: tuple[float, float]
    tpot_ms: tuple[float, float]
    busy: list[float]
    num_steps: int


class Pipeline:
    """Stages with their times."""

    def __init__(self, costs: list[StageTimes]) -> None:
        self.costs = costs
        self.busy_s = [0.0] * len(costs)
        self._free_s = [0.0] * len(costs)  # when each stage's last step ends
        self._host_s = [0.0] * len(costs)  # when its host has launched it
        self._token_s: dict[int, float] = {}  # by slot: when its newest token is at stage 0

    def run(self, inputs: StepInput, planned_s: float) -> float:
        """Runs a step whose plan was made then; when its result is at the scheduler."""
        decodes = inputs.num_tokens == 1
        context = int(inputs.starts[decodes].sum())
        num_decodes = int(decodes.sum())
        shape = (num_decodes, context, inputs.total_tokens - num_decodes, len(inputs.sample_rows))
        waits_for = max([self._token_s.get(slot, 0.0) for slot in inputs.slots[decodes].tolist()], default=0.0)
        for k, cost in enumerate(self.costs):
            self._host_s[k] = max(self._host_s[k], planned_s + PLAN_S) + HOST_S
            step_s = cost.of(*shape)
            self.busy_s[k] += step_s
            self._free_s[k] = max(self._free_s[k], self._host_s[k], waits_for) + step_s
            waits_for = self._free_s[k] + HOP_S
        for slot in inputs.sample_slots.tolist():
            self._token_s[slot] = waits_for if len(self.costs) > 1 else self._free_s[0]
        return self._free_s[-1] + RESULT_S


def simulate(requests: list[Request], config: SchedulerConfig, stages: list[StageTimes], at_once: int) -> Figures:
    """Runs the workload; `at_once` requests are open at a time, where they don't come at times of their own."""
    pipeline = Pipeline(stages)
    slowest = max(stages, key=lambda stage: stage.of_shape(TYPICAL))
    shapes = shapes_to_measure(config.max_num_seqs, config.max_num_batched_tokens, MAX_LEN)
    cost = fit([StepSample(shape, slowest.of_shape(shape)) for shape in shapes])
    scheduler = Scheduler(replace(config, step_cost=cost))
    mirror = Mirror(config.max_num_seqs, MAX_LEN // BLOCK_SIZE, BLOCK_SIZE, config.max_unretired_plans)
    arrivals = [(request.arrival_s, i) for i, request in enumerate(requests[:at_once])]
    heapq.heapify(arrivals)
    next_request, now_s = at_once, 0.0
    results: list[tuple[float, StepPlan, StepInput]] = []
    added_s, first_s, last_s = (np.zeros(len(requests)) for _ in range(3))
    while scheduler.num_unfinished or arrivals or results:
        while arrivals and arrivals[0][0] <= now_s:
            arrived_s, i = heapq.heappop(arrivals)
            added_s[i] = arrived_s
            prompt = ints(requests[i].prompt_token_ids)
            scheduler.add_request(NewRequest(str(i), prompt, requests[i].max_tokens, ignore_eos=True))
        while results and results[0][0] <= now_s:
            _, plan, inputs = results.pop(0)
            scheduler.update(StepResult(plan.step, ints([5] * len(inputs.sample_rows))))
        while (plan_now := scheduler.schedule()) is not None:
            inputs = mirror.apply(plan_now)
            results.append((pipeline.run(inputs, now_s), plan_now, inputs))
        for event in scheduler.take_events():
            i = int(event.request_id)
            if len(event.token_ids) and not first_s[i]:
                first_s[i] = now_s + CLIENT_S
            if event.finish_reason is not None:
                last_s[i] = now_s + CLIENT_S
                scheduler.forget(event.client_id, event.request_id)
                if next_request < len(requests):
                    heapq.heappush(arrivals, (now_s + 2 * CLIENT_S, next_request))
                    next_request += 1
        nexts = [results[0][0]] if results else []
        nexts += [arrivals[0][0]] if arrivals else []
        if nexts:
            now_s = max(now_s, min(nexts))
    return figures_of(requests, pipeline, scheduler, added_s, first_s, last_s)


def figures_of(
    requests: list[Request],
    pipeline: Pipeline,
    scheduler: Scheduler,
    added_s: np.ndarray[tuple[int], np.dtype[np.float64]],
    first_s: np.ndarray[tuple[int], np.dtype[np.float64]],
    last_s: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Figures:
    counts = np.array([request.max_tokens for request in requests])
    several = counts > 1
    tpot = (last_s - first_s)[several] / (counts[several] - 1) * 1e3
    ttft = (first_s - added_s) * 1e3
    seconds = float(last_s.max())
    return Figures(
        tokens_per_s=counts.sum() / seconds,
        ttft_ms=(float(np.median(ttft)), float(np.percentile(ttft, 99))),
        tpot_ms=(float(np.median(tpot)), float(np.percentile(tpot, 99))),
        busy=[busy / seconds for busy in pipeline.busy_s],
        num_steps=scheduler.stats().num_steps,
    )


PARTITIONS = {1: [36], 2: [19, 17], 4: [10, 10, 9, 7]}
RUNS = {
    "chat": ("chat", 512, None, 512),
    "decode": ("decode", 256, None, 256),
    "decode1024": ("decode", 1024, None, 1024),
    "chat64": ("chat", 256, None, 64),
    "rate40": ("chat", 400, 40.0, 400),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stages", type=int, nargs="*", default=list(PARTITIONS))
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--throttle-steps", type=int, default=8)
    parser.add_argument("--min-prefill-tokens", type=int, default=None)
    parser.add_argument("--max-decode-slowdown", type=float, default=3.0)
    parser.add_argument("--extra-plans", type=int, default=1)
    parser.add_argument("--partition", type=float, nargs="*", help="layers of each stage; halves are allowed")
    given = parser.parse_args()
    if unknown := set(given.stages) - set(PARTITIONS):
        parser.error(f"partitions are there for {list(PARTITIONS)} stages, not for {unknown}")
    times = LayerTimes(Path(__file__).with_name("layer_times.json"))
    for stages in given.stages:
        partition: Sequence[float] = given.partition or PARTITIONS[stages]
        least = EngineConfig(device="cuda", pipeline_parallel_size=stages).least_prefill_tokens
        config = SchedulerConfig(
            num_stages=stages,
            num_blocks=90000,
            max_num_batched_tokens=8192 if stages == 1 else 2048,
            enable_prefix_caching=False,
            max_unretired_plans=stages + given.extra_plans,
            policy="fill" if stages == 1 else "token_throttling",
            throttle_steps=given.throttle_steps,
            min_prefill_tokens=given.min_prefill_tokens or least,
            max_decode_slowdown=given.max_decode_slowdown,
        )
        for name in given.runs:
            workload, count, rate, at_once = RUNS[name]
            requests = make_workload(workload, count, VOCAB_SIZE, rate)
            costs = [StageTimes(times, n, k == stages - 1) for k, n in enumerate(partition)]
            figures = simulate(requests, replace(config, max_num_seqs=max(512, at_once)), costs, at_once)
            print(
                f"{stages} stages, {name:10}: {figures.tokens_per_s:7.0f} tok/s, "
                f"TTFT {figures.ttft_ms[0]:6.0f} / {figures.ttft_ms[1]:5.0f} ms, "
                f"TPOT {figures.tpot_ms[0]:5.2f} / {figures.tpot_ms[1]:5.2f} ms, "
                f"busy {' '.join(f'{share:.1%}' for share in figures.busy)}, {figures.num_steps} steps"
            )


if __name__ == "__main__":
    main()
