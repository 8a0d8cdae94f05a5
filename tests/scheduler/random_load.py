"""A random load as a state machine: arrivals, aborts, stops, preemptions, results as late as may be, 1 to 8 stages.

What must hold after every step, besides the scheduler's own `check()`:

* rows, budgets and unretired plans are within their limits;
* cohort sizes are within one of each other 2P steps after members last came or went;
* a running decode has a row at least every `max_gap` steps;
* nobody is admitted, for the first time or again, while an earlier arrival waits.

At the end every request is answered, with exactly the tokens that a direct computation gives.
"""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.cost import StepCost
from penstock.scheduler.plan import Sampling, StepPlan
from penstock.scheduler.request import State

from .fake_pipeline import Pipeline

totals: Counter[str] = Counter()  # over all examples of a run: what the load has met
seeds = st.integers(0, (1 << 32) - 1)


def random_config(rng: random.Random) -> SchedulerConfig:
    """An engine small enough that every limit is met; one in three has room for sequences to decode side by side."""
    num_stages = rng.randint(1, 8)
    is_roomy = rng.random() < 0.35
    return SchedulerConfig(
        num_stages=num_stages,
        num_blocks=500 if is_roomy else rng.randint(4, 60),
        block_size=rng.choice([1, 2, 4]),
        max_num_seqs=24 if is_roomy else rng.randint(1, 12),
        max_num_batched_tokens=rng.choice([8, 64]) if is_roomy else rng.choice([1, 2, 3, 8, 64]),
        max_model_len=80 if is_roomy else rng.randint(8, 40),
        vocab_size=rng.choice([3, 50, 1000]),
        enable_prefix_caching=rng.random() < 0.7,
        async_scheduling=rng.random() < 0.7,
        max_unretired_plans=2 if num_stages == 1 else num_stages + rng.randint(1, 2),
        policy=rng.choice(["fill", "token_throttling"]),
        throttle_steps=rng.randint(1, 8),
        min_prefill_tokens=rng.choice([1, 4, 32]),
        max_prefill_tokens=rng.choice([8, 64]),
        kv_reserve=rng.choice([0.0, 0.05, 0.3]),
        step_cost=rng.choice([None, StepCost(1e-5, 1.0, 1e-5, 1e-4), StepCost(1e-5, 12.0, 1e-6, 0.0, 1e-3)]),
        max_decode_slowdown=rng.choice([1.0, 2.0]),
    )


class RandomLoad(RuleBasedStateMachine):
    """Drives a pipeline with whatever hypothesis thinks of; details of a request come from a seed that it draws."""

    @initialize(seed=seeds)
    def start(self, seed: int) -> None:
        self.config = random_config(random.Random(seed))
        self.pipeline = Pipeline(self.config)
        self.life = self.pipeline.scheduler._life
        self.members: set[int] = set()  # arrivals that decode
        self.changed_at = 0  # the plan at which members came or went
        self.last_rows: dict[int, int] = {}  # arrival: its newest step

    @property
    def max_gap(self) -> int:
        """Steps within which a decode has a row: the rounds its cohort needs, one for joining and one for moving."""
        rounds = -(-self.config.max_num_seqs // self.config.max_num_batched_tokens) + 2
        return rounds * self.config.num_stages

    @rule(seed=seeds, count=st.integers(1, 6))
    def arrive(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            values = rng.choice([2, self.config.vocab_size])
            prompt = [rng.randrange(values) for _ in range(rng.randint(0, min(38, self.config.max_model_len - 2)))]
            sampling = Sampling(
                min_tokens=rng.choice([0, 0, 3]),
                num_logprobs=rng.choice([-1, 0]),
                num_prompt_logprobs=rng.choice([-1, -1, 0]),
            )
            self.pipeline.submit(
                prompt,
                rng.randint(0, self.config.max_model_len // 2),
                sampling=sampling,
                stop_token_ids=tuple(rng.randrange(self.config.vocab_size) for _ in range(rng.randint(0, 1))),
                eos_token_ids=tuple(rng.randrange(self.config.vocab_size) for _ in range(rng.choice([0, 2]))),
                ignore_eos=rng.random() < 0.3,
            )

    @precondition(lambda self: self.pipeline.clients)
    @rule(seed=seeds, count=st.integers(1, 3))
    def abort(self, seed: int, count: int) -> None:
        names = sorted(self.pipeline.clients)
        for name in random.Random(seed).choices(names, k=count):
            self.pipeline.abort(name)
        self.note_members()

    @rule(count=st.integers(1, 12))
    def schedule(self, count: int) -> None:
        while count and self.plan():
            count -= 1

    def plan(self) -> bool:
        """One plan, if there can be one."""
        plan = self.pipeline.schedule()
        if plan is not None:
            self.check_plan(plan)
        return plan is not None

    @precondition(lambda self: self.pipeline.results)
    @rule(count=st.integers(1, 10))
    def retire(self, count: int) -> None:
        for _ in range(min(count, len(self.pipeline.results))):
            self.pipeline.retire()
        self.note_members()

    @rule(count=st.integers(1, 40), num_late=st.integers(0, 10))
    def run(self, count: int, num_late: int) -> None:
        for _ in range(count):
            if not self.plan() or len(self.pipeline.results) > num_late:
                self.retire(1)

    @rule(seed=seeds, count=st.integers(20, 200))
    def storm(self, seed: int, count: int) -> None:
        """Many calls at once, in the proportions of a busy engine."""
        rng = random.Random(seed)
        lateness = rng.randint(0, 10)
        for _ in range(count):
            kind = rng.random()
            if kind < 0.05:
                self.arrive(rng.getrandbits(32), rng.choice([1, 1, 1, 5]))
            elif kind < 0.07 and self.pipeline.clients:
                self.abort(rng.getrandbits(32), rng.randint(1, 4))
            elif kind < 0.6:
                self.schedule(rng.randint(1, 3))
            elif len(self.pipeline.results) > (lateness if rng.random() < 0.8 else 0):
                self.retire(rng.randint(1, 2))

    def note_members(self) -> None:
        members = {request.arrival for request in self.life.table.held() if request.state is State.DECODING}
        if members != self.members:
            self.members, self.changed_at = members, len(self.pipeline.plans)

    def check_plan(self, plan: StepPlan) -> None:
        config, slots = self.config, plan.slots.tolist()
        assert 0 < len(slots) == len(set(slots))
        assert plan.num_tokens.min() >= 1
        assert plan.num_tokens.sum() <= config.max_num_batched_tokens
        assert self.pipeline.scheduler.num_unretired <= config.max_unretired_plans
        self.note_members()
        self.check_balance()
        self.check_order(plan)
        self.last_rows.update((self.life.table.holder(slot).arrival, plan.step) for slot in slots)
        for arrival in self.members:
            gap = plan.step - self.last_rows[arrival]
            assert gap <= self.max_gap, f"request {arrival} has no row for {gap} steps"
            totals["gap"] = max(totals["gap"], gap)

    def check_balance(self) -> None:
        sizes = self.life.cohorts.sizes
        if len(self.pipeline.plans) - self.changed_at >= 2 * self.config.num_stages:
            assert max(sizes) - min(sizes) <= 1, f"{sizes}, {self.config.num_stages} stages"
            totals["balanced"] += 1

    def check_order(self, plan: StepPlan) -> None:
        admitted = [self.life.table.holder(registration.slot).arrival for registration in plan.registrations]
        left = [request.arrival for request in (*self.life.queue, *self.life.preempted)]
        assert max(admitted, default=-1) < min(left, default=1 << 32), f"{admitted} admitted before {left}"

    def teardown(self) -> None:
        if not hasattr(self, "pipeline"):
            return
        for _ in range(1000):
            if not self.pipeline.scheduler.num_unfinished:
                break
            self.run(20, self.config.num_stages)
        self.pipeline.run()
        stats = self.pipeline.scheduler.stats()
        assert stats.held_blocks == stats.running == stats.waiting == 0
        totals["preemptions"] += stats.num_preemptions
        totals["prefix hit tokens"] += stats.num_prefix_hit_tokens
        totals["steps"] += stats.num_steps
        totals.update(str(seen.finish_reason) for seen in self.pipeline.clients.values())
