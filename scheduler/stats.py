"""What the scheduler tells of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class SchedulerStats:
    """A moment's figures; counts since the start where they say `num_` of events."""

    waiting: int  # requests without a slot
    running: int  # requests with a slot
    cohort_sizes: list[int]  # decodes by cohort
    free_blocks: int  # blank and cached
    cached_blocks: int  # free, content kept
    held_blocks: int
    reserve: float  # share of the cache that prefill leaves free
    unretired_plans: int
    num_steps: int
    num_preemptions: int
    num_prefix_query_tokens: int  # known tokens of admitted requests that looked into the prefix cache
    num_prefix_hit_tokens: int  # of these, found
