"""The scheduler's budgets: CPU time for a step, plan size, encode and decode time. Exits 1 when one is exceeded.

`python tests/benchmarks/bench_scheduler.py`; no GPU, no model. Four stages and 256 running sequences, 64 in a step;
results come three steps late, as in a full pipeline.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from penstock.scheduler.codec import decode_plan, encode_plan
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import Sampling, StepPlan, StepResult, ints
from penstock.scheduler.scheduler import Scheduler

NUM_STAGES = 4
NUM_RUNNING = 256
NUM_ARRIVALS = 512
PROMPT_TOKENS = 300
CONFIG = SchedulerConfig(
    num_stages=NUM_STAGES,
    num_blocks=80_000,
    max_num_seqs=NUM_RUNNING + NUM_ARRIVALS,
    max_num_batched_tokens=2048,
    vocab_size=100_000,
    max_unretired_plans=NUM_STAGES + 2,
    policy="token_throttling",
)


@dataclass
class Figure:
    """One measured value and its budget."""

    name: str
    value: float
    budget: float
    unit: str


class Driver:
    """Runs a scheduler whose stages sample at once and answer `NUM_STAGES - 1` plans late."""

    def __init__(self, config: SchedulerConfig = CONFIG) -> None:
        self.scheduler = Scheduler(config)
        self.rng = np.random.default_rng(0)
        self.in_flight: deque[StepPlan] = deque()
        self.known_ends: dict[int, int] = {}  # slot: where its registered tokens end
        self.scheduled: dict[int, int] = {}
        self.last_plan: StepPlan | None = None

    def add(self, count: int, max_tokens: int = 3000, stop: int = 99_999) -> list[float]:
        """Adds requests with random prompts of 150 to 450 tokens; seconds for each."""
        seconds = []
        for _ in range(count):
            length = int(self.rng.integers(PROMPT_TOKENS // 2, PROMPT_TOKENS * 3 // 2))
            name = str(self.rng.integers(1 << 60))
            prompt = ints(self.rng.integers(0, 90_000, length))
            request = NewRequest(name, prompt, max_tokens, Sampling(temperature=1.0), "client", (), (stop,))
            start = time.thread_time()
            self.scheduler.add_request(request)
            seconds.append(time.thread_time() - start)
        return seconds

    def step(self) -> float:
        """One plan and, once the pipeline is full, one result; seconds spent inside the scheduler."""
        start = time.thread_time()
        plan = self.scheduler.schedule()
        seconds = time.thread_time() - start
        if plan is not None:
            self.in_flight.append(plan)
            self.last_plan = plan
        if plan is None or len(self.in_flight) >= NUM_STAGES:
            result = self._result(self.in_flight.popleft())
            start = time.thread_time()
            self.scheduler.update(result)
            self.scheduler.take_events()
            seconds += time.thread_time() - start
        return seconds

    def _result(self, plan: StepPlan) -> StepResult:
        num_samples = 0
        for registration in plan.registrations:
            self.known_ends[registration.slot] = len(registration.token_ids)
            self.scheduled[registration.slot] = registration.num_computed_tokens
        for slot, count in zip(plan.slots.tolist(), plan.num_tokens.tolist(), strict=True):
            self.scheduled[slot] += count
            num_samples += self.scheduled[slot] >= self.known_ends[slot]
        return StepResult(plan.step, ints(self.rng.integers(0, 90_000, num_samples)))


def steady_driver() -> Driver:
    """A driver whose 256 sequences all decode, in four cohorts of 64."""
    driver = Driver()
    driver.add(NUM_RUNNING)
    while driver.scheduler.stats().cohort_sizes != [NUM_RUNNING // NUM_STAGES] * NUM_STAGES:
        driver.step()
    return driver


def median_us(work: Callable[[], object], repeats: int = 300) -> float:
    """The median CPU time of a call."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return float(np.median(times)) * 1e6


@dataclass
class Run:
    """Microseconds of one run, the same calls every time."""

    steady: list[float]  # by step
    adding: list[float]  # by request of the burst
    arriving: list[float]  # by step, until the burst is admitted


def run_once(num_steps: int) -> Run:
    """Steady decode, then a burst."""
    driver = steady_driver()
    steady = [driver.step() * 1e6 for _ in range(num_steps)]
    adding = [seconds * 1e6 for seconds in driver.add(NUM_ARRIVALS)]
    arriving = []
    while driver.scheduler.stats().waiting:
        arriving.append(driver.step() * 1e6)
    return Run(steady, adding, arriving)


def measure(num_steps: int = 1000, num_runs: int = 5) -> list[Figure]:
    """Every figure of the scheduler's budgets. Runs are equal call by call, so each call counts with its fastest."""
    runs = [run_once(num_steps) for _ in range(num_runs)]
    steady = np.min([run.steady for run in runs], axis=0)
    adding = np.min([run.adding for run in runs], axis=0)
    arriving = np.min([run.arriving for run in runs], axis=0)
    wide = StepPlan(
        0, ints(range(NUM_RUNNING)), ints([1] * NUM_RUNNING), block_slots=ints(range(16)), block_ids=ints(range(16))
    )
    data = encode_plan(wide)
    return [
        Figure("step, steady, median", float(np.median(steady)), 100, "us"),
        Figure("step, steady, p99", float(np.percentile(steady, 99)), 500, "us"),
        Figure(f"step, {NUM_ARRIVALS} prompts arriving, median", float(np.median(arriving)), 500, "us"),
        Figure(f"step, {NUM_ARRIVALS} prompts arriving, p99", float(np.percentile(arriving, 99)), 500, "us"),
        Figure("add_request, median", float(np.median(adding)), 100, "us"),
        Figure(f"plan of {NUM_RUNNING} decodes", len(data), 2048, "bytes"),
        Figure(
            f"plan of {NUM_RUNNING} decodes, encode + decode",
            median_us(lambda: decode_plan(encode_plan(wide))),
            50,
            "us",
        ),
    ]


def main() -> int:
    """Prints the table; the number of figures over budget, at most 1."""
    figures = measure()
    for figure in figures:
        verdict = "" if figure.value <= figure.budget else "  OVER BUDGET"
        print(f"{figure.name:<45} {figure.value:8.1f} {figure.unit:<5} (budget {figure.budget:.0f}){verdict}")
    return int(any(figure.value > figure.budget for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
