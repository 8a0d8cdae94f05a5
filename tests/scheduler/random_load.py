"""A random load as a state machine: arrivals, aborts, stops, preemptions, results as late as may be, 1 to 8 stages.

What must hold after every step: the scheduler's own `check()`; rows, budgets and unretired plans within their limits;
cohort sizes within one of each other 2P steps after members last came or went; a running decode has a row at least
every `Load.max_gap` steps; requests are admitted in the order of their arrival. At the end: every request answered,
with exactly the tokens that a direct computation gives.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.plan import Sampling, StepPlan
from penstock.scheduler.request import State

from .fake_pipeline import Pipeline

totals: Counter[str] = Counter()  # over all examples of a run: what the load has met


@st.composite
def configs(draw: st.DrawFn) -> SchedulerConfig:
    """Engines small enough that every limit is met."""
    num_stages = draw(st.integers(1, 8))
    return SchedulerConfig(
        num_stages=num_stages,
        num_blocks=draw(st.integers(4, 60)),
        block_size=draw(st.sampled_from([1, 2, 4])),
        max_num_seqs=draw(st.integers(1, 12)),
        max_num_batched_tokens=draw(st.sampled_from([1, 2, 3, 8, 64])),
        max_model_len=draw(st.integers(8, 40)),
        vocab_size=draw(st.sampled_from([3, 50, 1000])),
        enable_prefix_caching=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        max_unretired_plans=2 if num_stages == 1 else num_stages + draw(st.integers(1, 2)),
        policy=draw(st.sampled_from(["fill", "token_throttling"])),
        throttle_steps=draw(st.integers(1, 8)),
        min_prefill_tokens=draw(st.sampled_from([1, 4, 32])),
        max_prefill_tokens=draw(st.sampled_from([8, 64])),
        kv_reserve=draw(st.sampled_from([0.0, 0.05, 0.3])),
    )


samplings = st.builds(
    Sampling,
    min_tokens=st.sampled_from([0, 0, 3]),
    num_logprobs=st.sampled_from([-1, 0]),
    num_prompt_logprobs=st.sampled_from([-1, -1, 0]),
)
ids = st.lists(st.integers(0, 2), max_size=2).map(tuple)


class RandomLoad(RuleBasedStateMachine):
    """Drives a pipeline with whatever hypothesis thinks of."""

    @initialize(config=configs())
    def start(self, config: SchedulerConfig) -> None:
        self.config = config
        self.pipeline = Pipeline(config)
        self.members: set[int] = set()  # arrivals that decode
        self.changed_at = 0  # the plan at which members came or went
        self.last_rows: dict[int, int] = {}  # arrival: its newest step
        self.max_admitted = -1

    @property
    def max_gap(self) -> int:
        """Steps within which a decode has a row: the rounds its cohort needs, one for joining and one for moving."""
        rounds = -(-self.config.max_num_seqs // self.config.max_num_batched_tokens) + 2
        return rounds * (self.config.num_stages + self.config.max_unretired_plans)

    @rule(
        prompts=st.lists(st.lists(st.integers(0, 2), max_size=24), min_size=1, max_size=6),
        max_tokens=st.integers(0, 20),
        sampling=samplings,
        stops=ids,
        eos=ids,
        ignore_eos=st.booleans(),
    )
    def arrive(
        self,
        prompts: list[list[int]],
        max_tokens: int,
        sampling: Sampling,
        stops: tuple[int, ...],
        eos: tuple[int, ...],
        ignore_eos: bool,
    ) -> None:
        for prompt in prompts:
            self.pipeline.submit(
                prompt,
                max_tokens,
                sampling=sampling,
                stop_token_ids=stops,
                eos_token_ids=eos,
                ignore_eos=ignore_eos,
            )

    @precondition(lambda self: self.pipeline.clients)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.pipeline.abort(data.draw(st.sampled_from(sorted(self.pipeline.clients))))
        self.note_members()

    @rule(count=st.integers(1, 12))
    def schedule(self, count: int) -> None:
        for _ in range(count):
            plan = self.pipeline.schedule()
            if plan is not None:
                self.check_plan(plan)

    @precondition(lambda self: self.pipeline.results)
    @rule(count=st.integers(1, 10))
    def retire(self, count: int) -> None:
        for _ in range(min(count, len(self.pipeline.results))):
            self.pipeline.retire()
        self.note_members()

    @rule(count=st.integers(1, 40))
    def run(self, count: int) -> None:
        for _ in range(count):
            self.schedule(1)
            if self.pipeline.results and self.pipeline.scheduler.num_unretired >= self.config.num_stages:
                self.retire(1)

    def note_members(self) -> None:
        life = self.pipeline.scheduler._life
        members = {request.arrival for request in life.table.held() if request.state is State.DECODING}
        if members != self.members:
            self.members, self.changed_at = members, len(self.pipeline.plans)

    def check_plan(self, plan: StepPlan) -> None:
        config, life = self.config, self.pipeline.scheduler._life
        assert 0 < len(plan.slots) == len(set(plan.slots.tolist()))
        assert plan.num_tokens.min() >= 1
        assert plan.num_tokens.sum() <= config.max_num_batched_tokens
        assert self.pipeline.scheduler.num_unretired <= config.max_unretired_plans
        self.note_members()
        sizes = life.cohorts.sizes
        if len(self.pipeline.plans) - self.changed_at >= 2 * config.num_stages:
            assert max(sizes) - min(sizes) <= 1, f"{sizes}, {config.num_stages} stages"
            totals["balanced"] += 1
        for registration in plan.registrations:
            arrival = life.table.requests[registration.slot].arrival
            is_new = arrival not in self.last_rows
            assert not is_new or arrival > self.max_admitted, "admitted out of turn"
            self.max_admitted = max(self.max_admitted, arrival)
        for slot in plan.slots.tolist():
            self.last_rows[life.table.requests[slot].arrival] = plan.step
        for arrival in self.members:
            gap = plan.step - self.last_rows[arrival]
            assert gap <= self.max_gap, f"request {arrival} has no row for {gap} steps"
            totals["gap"] = max(totals["gap"], gap)

    def teardown(self) -> None:
        if not hasattr(self, "pipeline"):
            return
        self.pipeline.run()
        stats = self.pipeline.scheduler.stats()
        assert stats.held_blocks == stats.running == stats.waiting == 0
        totals["preemptions"] += stats.num_preemptions
        totals["prefix hit tokens"] += stats.num_prefix_hit_tokens
        totals["steps"] += stats.num_steps
        totals.update(str(seen.finish_reason) for seen in self.pipeline.clients.values())
