"""The plan stream's vocabulary: what the scheduler tells every stage, and what the last stage answers.

A plan says everything that a stage must know for one step and no more: sequences are registered once (their tokens
and sampling settings travel then), afterwards a row is a slot and a token count. Positions, shapes, which rows sample
and which tokens come from the FutureMap follow from the plans alone; `mirror.Mirror` derives them, identically on
every rank.

Shape legend used everywhere: T tokens of this step, S rows (sequences) of this step, R rows that sample, B blocks
granted, H hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MAX_REGISTRATIONS = 32  # of a plan; some 15 us each: a burst of short prompts must not hold up the stages

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


def ints(values: object = ()) -> Ints:
    """The values as a one-dimensional int32 array."""
    return np.asarray(values, dtype=np.int32)


@dataclass(slots=True, frozen=True)
class Sampling:
    """What the sampler must know of a sequence; everything resolved, nothing optional.

    Off values: temperature 0 is greedy, top_k 0, top_p 1, min_p 0, repetition_penalty 1, presence and frequency 0.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0  # the noise of a token is drawn from (seed, position, token id) alone
    num_logprobs: int = -1  # -1 none, 0 the sampled token's only, n the top n as well
    num_prompt_logprobs: int = -1  # likewise, for the prompt's tokens
    min_tokens: int = 0  # until so many tokens are generated, `stop_token_ids` can't be sampled
    stop_token_ids: tuple[int, ...] = ()  # what `min_tokens` forbids (eos ids included)
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, bias), sorted by id
    grammar: str = ""  # what the text must be, as a spec (configs.structured); "" anything


GREEDY = Sampling()


@dataclass(slots=True)
class Registration:
    """A sequence enters a slot. A preempted sequence registers again with prompt + generated as its known tokens."""

    slot: int
    generation: int  # how often the slot has been given back; guards against results for its former owner
    num_computed_tokens: int  # already in the cache (prefix hit); the first row starts here
    num_prompt_tokens: int  # of token_ids; what follows was generated before a preemption
    token_ids: Ints  # [known tokens]
    sampling: Sampling = GREEDY


@dataclass(slots=True)
class StepPlan:
    """One step of the whole pipeline, the same bytes for every rank. Never revoked.

    Applied in this order: `released`, `registrations`, granted blocks, rows.
    """

    step: int  # 0, 1, 2, ... within an epoch
    slots: Ints  # [S] the rows, in the order of their tokens
    num_tokens: Ints  # [S] tokens of each row: a chunk of known tokens, or 1
    epoch: int = 0
    cohort: int = -1  # which decode cohort the step serves (for the timeline); -1 none
    released: Ints = field(default_factory=ints)  # slots that are free from this step on
    registrations: list[Registration] = field(default_factory=list)
    block_slots: Ints = field(default_factory=ints)  # [B] grouped by slot
    block_ids: Ints = field(default_factory=ints)  # [B] appended to that slot's table, in order


def most_granted_blocks(max_num_seqs: int, max_blocks_per_seq: int, max_num_batched_tokens: int, size: int) -> int:
    """Of one plan, blocks having `size` tokens: for its new sequences, of which each may begin with any number of
    cached blocks, and for its tokens.
    """
    for_tokens = max_num_batched_tokens // size + max_num_seqs
    return min(max_num_seqs * max_blocks_per_seq, MAX_REGISTRATIONS * max_blocks_per_seq + for_tokens)


@dataclass(slots=True)
class Logprobs:
    """Log-probabilities for the tokens of one row: its sampled token, or a chunk of its prompt.

    k tokens (1 for a sampled token), n alternatives asked for (0 allowed).
    """

    row: int  # index into the plan's rows
    start: int  # position in the sequence of the first of the k tokens
    token_ids: Ints  # [k] the tokens scored
    values: Floats  # [k] their log-probabilities
    ranks: Ints  # [k] 1 is the most likely
    top_ids: NDArray[np.int32]  # [k, n] most likely first
    top_values: NDArray[np.float32]  # [k, n]


@dataclass(slots=True)
class StepResult:
    """What the last stage answers to a plan; every step has one, also without tokens."""

    step: int
    token_ids: Ints  # [R] of the rows that sample, in the plan's order
    epoch: int = 0
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
