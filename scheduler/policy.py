"""How many prefill tokens a step may carry, behind one protocol.

`FillPolicy` fills the step's budget, decodes first, as vLLM does. `TokenThrottling` (after gLLM, "gLLM: Global Balanced
Pipeline Parallelism with Token Throttling") evens out the cost of consecutive steps: prefill is spread over
`throttle_steps` and slows down as the cache fills. The reserve that prefill leaves free adapts to preemptions, after
the idea of SGLang's new-token ratio. No clock, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .config import SchedulerConfig


@dataclass(slots=True)
class Load:
    """What a policy may know of a step."""

    waiting_tokens: int  # known tokens that are not planned yet, of all requests
    running_decodes: int  # members of all cohorts
    free_share: float  # of the cache's blocks
    reserve: float  # share that prefill is to leave free
    budget: int  # tokens that the step has room for beside its decodes


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
        by_waiting = max(-(-load.waiting_tokens // self.num_steps), self.min_tokens)
        room = max(0.0, (load.free_share - load.reserve) / (1.0 - load.reserve))
        tokens = min(by_waiting, int(self.max_tokens * room))
        if not load.running_decodes:  # nobody will free a block by decoding: go on with what there is
            tokens = max(tokens, self.min_tokens, 1)
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
    return TokenThrottling(config.throttle_steps, config.min_prefill_tokens, config.max_prefill_tokens)
