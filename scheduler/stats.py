"""What the scheduler tells of itself."""

from __future__ import annotations

from dataclasses import dataclass

from .messages import FinishReason


@dataclass(slots=True)
class SchedulerStats:
    """A moment's figures; counts since the start where they say `num_` of events."""

    waiting: int  # requests without a slot
    running: int  # requests with a slot
    prefilling: int  # of these, with known tokens that no plan holds yet
    cohort_sizes: list[int]  # decodes by cohort
    free_blocks: int  # blank and cached
    cached_blocks: int  # free, content kept
    held_blocks: int
    reserve: float  # share of the cache that prefill leaves free
    unretired_plans: int
    num_steps: int
    num_prompt_tokens: int  # of the requests that a plan has held
    num_generated_tokens: int  # that were told to clients
    num_finished: dict[FinishReason, int]  # final events, refusals included
    num_preemptions: int
    num_prefix_query_tokens: int  # known tokens of admitted requests that looked into the prefix cache
    num_prefix_hit_tokens: int  # of these, found
