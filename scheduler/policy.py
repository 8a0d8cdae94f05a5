"""How many prefill tokens a step may carry, behind one protocol.

`FillPolicy` fills the step's budget, decodes first, as vLLM does. `TokenThrottling` (after gLLM, "gLLM: Global Balanced
Pipeline Parallelism with Token Throttling") evens out the cost of consecutive steps: prefill is spread over
`throttle_steps` and slows down as the cache fills. `EvenCost` corrects its tokens by what steps cost, where that was
measured. The reserve that prefill leaves free adapts to preemptions, after the idea of SGLang's new-token ratio. No
clock, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .config import SchedulerConfig
from .cost import StepCost


@dataclass(slots=True)
class Load:
    """What a policy may know of a step."""

    waiting_tokens: int  # known tokens that are not planned yet, of all requests
    running_decodes: int  # members of all cohorts
    free_share: float  # of the cache's blocks
    reserve: float  # share that prefill is to leave free
    budget: int  # tokens that the step has room for beside its decodes
    num_decodes: int = 0  # of this step
    context: int = 0  # cached tokens that they read together; this and the next only where a step's cost is known
    running_context: int = 0  # the same of all cohorts


class PrefillPolicy(Protocol):
    """Decides the prefill share of one step."""

    def prefill_tokens(self, load: Load) -> int:
        """Tokens of prefill for this step, 0 to `load.budget`; above 0 when something waits and nothing decodes."""
        ...


class FillPolicy:
    """Whatever the budget leaves."""

    def prefill_tokens(self, load: Load) -> int:
        return max(0, min(load.waiting_tokens, load.budget))


@dataclass(slots=True, frozen=True)
class TokenThrottling:
    """min(max(waiting / T, minP), maxP * (free - reserve) / (1 - reserve)), never below 0."""

    num_steps: int  # T
    min_tokens: int  # minP
    max_tokens: int  # maxP

    def prefill_tokens(self, load: Load) -> int:
        if not load.waiting_tokens:
            return 0
        tokens = min(self.by_waiting(load), self.by_room(load))
        if not load.running_decodes:  # nobody will free a block by decoding: go on with what there is
            tokens = max(tokens, self.min_tokens, 1)
        return max(0, min(tokens, load.waiting_tokens, load.budget))

    def by_waiting(self, load: Load) -> int:
        """max(waiting / T, minP)."""
        return max(-(-load.waiting_tokens // self.num_steps), self.min_tokens)

    def by_room(self, load: Load) -> int:
        """maxP * (free - reserve) / (1 - reserve), not below 0."""
        room = max(0.0, (load.free_share - load.reserve) / (1.0 - load.reserve))
        return int(self.max_tokens * room)


@dataclass(slots=True, frozen=True)
class EvenCost:
    """The throttle's tokens, shifted between steps so that all steps cost the same, and bounded for the decodes' sake.

    The aim is the cost of a mean step: a cohort's share of all decodes and of their context, and the throttle's tokens.
    A step whose own decodes cost more gets fewer tokens, another one more. As cohorts differ by one sequence at most,
    the largest stands for all in that aim: then one of them at least gets what the throttle says, and nothing waits
    for ever. Tokens that cost nothing, under the roofline's knee, are always given, as far as the cache's room allows.

    With decodes running a step may cost `max_slowdown` times as much as its decodes alone, and what any prompt token
    costs beside that; `min_tokens` of the throttle are given even beyond. With 3, four stages whose decodes alone take
    1.1 ms say a token every 13 ms at worst, while prompts stream in without a pause; under the load of a chat few steps
    hold more prompt than is free, and the mean stays near the 4.4 ms of decodes alone. A smaller factor fills the slots
    later when many prompts come at once, and their throughput pays.
    """

    throttle: TokenThrottling
    cost: StepCost
    num_cohorts: int
    max_slowdown: float

    def prefill_tokens(self, load: Load) -> int:
        if not load.waiting_tokens or not load.running_decodes:
            return self.throttle.prefill_tokens(load)
        cost, room = self.cost, self.throttle.by_room(load)
        throttled = min(self.throttle.by_waiting(load), room)
        if not throttled:
            return 0
        cohort = -(-load.running_decodes // self.num_cohorts)
        aim_s = cost.of(cohort, load.running_context / self.num_cohorts, throttled)
        alone_s = cost.of(load.num_decodes, load.context)
        free_s = alone_s + cost.prompt_s
        tokens = cost.prompt_tokens_within(max(aim_s, free_s), load.num_decodes, load.context)
        bound_s = self.max_slowdown * alone_s + cost.prompt_s
        bound = cost.prompt_tokens_within(bound_s, load.num_decodes, load.context)
        tokens = min(tokens, max(bound, self.throttle.min_tokens), room)
        return max(0, min(tokens, load.waiting_tokens, load.budget))


class AdaptiveReserve:
    """The share of the cache that prefill leaves to the growth of running requests.

    Starts and ends at `base`; every preemption adds to it, every step takes a little of the excess back.
    """

    STEP = 0.02
    DECAY = 0.998
    CEILING = 0.5

    def __init__(self, base: float) -> None:
        self._base = base
        self.share = base

    def note_preemption(self) -> None:
        """A running request had to give its blocks up: too much was admitted."""
        self.share = max(self._base, min(self.share + self.STEP, self.CEILING))

    def note_step(self) -> None:
        """A step was planned."""
        if self.share > self._base:
            self.share = self._base + (self.share - self._base) * self.DECAY


def make_policy(config: SchedulerConfig) -> PrefillPolicy:
    """The policy that the configuration names."""
    if config.policy == "fill":
        return FillPolicy()
    throttle = TokenThrottling(config.throttle_steps, config.min_prefill_tokens, config.max_prefill_tokens)
    if config.step_cost is None:
        return throttle
    return EvenCost(throttle, config.step_cost, config.num_stages, config.max_decode_slowdown)
