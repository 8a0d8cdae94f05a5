"""What the scheduler must know of its engine; plain data, so that a recorded run can carry it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .cost import StepCost

PolicyName = Literal["token_throttling", "fill"]


@dataclass(slots=True, frozen=True)
class SchedulerConfig:
    """Limits and choices of one engine's scheduler."""

    num_stages: int = 1
    num_blocks: int = 1024  # of the KV cache, per layer; the same on every stage
    block_size: int = 16  # tokens in a block
    max_num_seqs: int = 256  # slots: sequences that hold cache at once
    max_num_batched_tokens: int = 2048  # tokens of one step, may be below max_num_seqs
    max_model_len: int = 4096  # tokens of a sequence, prompt and output together
    vocab_size: int = 1 << 31  # ids at or above it are refused
    enable_prefix_caching: bool = True
    async_scheduling: bool = True  # False: a cohort is withheld until its step has retired
    max_unretired_plans: int = 2  # P + 1 or P + 2; 2 with one stage
    policy: PolicyName = "fill"  # token_throttling is the default with more than one stage
    throttle_steps: int = 8  # T: the steps over which waiting prompt tokens are spread
    min_prefill_tokens: int = 32  # minP
    max_prefill_tokens: int = 2048  # maxP
    step_cost: StepCost | None = None  # of the slowest stage; None: steps are filled by counts
    max_decode_slowdown: float = 3.0  # with a step_cost: a step's cost over that of its decodes alone
    kv_reserve: float = 0.05  # share of the cache that prefill leaves free; the adaptive reserve starts here
    epoch: int = 0
