"""A request inside the scheduler, as four lengths with one invariant.

    num_prompt <= num_registered <= num_known,    num_scheduled <= num_known + 1

* `num_prompt`      tokens that the client sent;
* `num_registered`  tokens that the stages were told when the request took its slot (prompt, or prompt + generated
  after a preemption); later ones live in the FutureMap;
* `num_known`       tokens that the scheduler holds: prompt + results, the length of the token log;
* `num_scheduled`   positions whose keys and values are planned, in the cache as far as later plans are concerned.

A plan samples when `num_scheduled` reaches `num_registered` and with each position from there on, so
`num_unresolved = max(0, num_scheduled + 1 - num_known)` tokens are sampled and not yet known; at most two. The lengths
of a request that holds a slot are columns of `slots.SlotTable`; one that waits has only its token log.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from .config import SchedulerConfig
from .messages import FinishReason, NewRequest, TokenEvent
from .plan import GREEDY, Ints, Logprobs, Sampling, ints
from .stop import StopRule


class State(IntEnum):
    """Where a request is; from PREFILLING to PREEMPTED it holds a slot."""

    WAITING = 0  # in the queue
    PREFILLING = 1  # known tokens are planned in chunks
    DECODING = 2  # member of a cohort
    LAST = 3  # every token it may have is planned
    PREEMPTED = 4  # without blocks; keeps its slot until its planned steps have retired
    FINISHED = 5


@dataclass(slots=True, eq=False)
class Request:
    """One sequence from its arrival to the delivery of its last event."""

    client_id: str
    request_id: str
    arrival: int  # 0, 1, 2, ...: who came first is served first and preempted last
    tokens: array[int]  # the token log: prompt, then the results
    num_prompt: int
    limit: int  # tokens of prompt and output together that it may reach
    sampling: Sampling
    stop: StopRule
    arrived_s: float = 0.0  # see NewRequest
    state: State = State.WAITING
    slot: int = -1
    blocks: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of the leading full blocks, computed as needed
    num_indexed: int = 0  # leading blocks that the prefix index knows of, or need not know
    num_cached_tokens: int = -1  # prompt tokens found in the prefix cache on first admission; -1 not admitted yet
    num_prompt_scored: int = 1  # prompt positions whose log-probabilities came (position 0 has none)
    prompt_scoring_planned: bool = False  # every chunk of the prompt was planned once
    logprobs: list[Logprobs] = field(default_factory=list)
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Identity across clients."""
        return (self.client_id, self.request_id)

    @property
    def num_output(self) -> int:
        """Generated tokens that are known."""
        return len(self.tokens) - self.num_prompt

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether positions of the prompt are still to be planned for scoring; the prefix cache can't serve those."""
        return self.sampling.num_prompt_logprobs >= 0 and not self.prompt_scoring_planned

    @property
    def remaining_sampling(self) -> Sampling:
        """The settings to register with: prompt log-probabilities are computed once, also after a preemption."""
        if self.sampling.num_prompt_logprobs < 0 or self.wants_prompt_logprobs:
            return self.sampling
        return replace(self.sampling, num_prompt_logprobs=-1)

    def known_tokens(self, start: int = 0) -> Ints:
        """A copy of the token log from `start` on."""
        return np.frombuffer(self.tokens[start:], dtype=np.int32)

    def event(self, start: int) -> TokenEvent:
        """One event with all that is known from output token `start` on, the end included."""
        return TokenEvent(
            client_id=self.client_id,
            request_id=self.request_id,
            start=start,
            token_ids=self.known_tokens(self.num_prompt + start),
            logprobs=self.logprobs[start:],
            prompt_logprobs=[] if start else list(self.prompt_logprobs),
            num_cached_tokens=max(self.num_cached_tokens, 0),
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
        )


NOBODY = Request("", "", -1, array("i"), 0, 0, GREEDY, StopRule())  # the holder of a free slot


def make_request(new: NewRequest, arrival: int, config: SchedulerConfig) -> Request:
    """The scheduler's own form of an accepted request."""
    prompt = ints(new.prompt_token_ids)
    return Request(
        client_id=new.client_id,
        request_id=new.request_id,
        arrival=arrival,
        tokens=array("i", prompt.tobytes()),
        num_prompt=len(prompt),
        limit=min(len(prompt) + new.max_tokens, config.max_model_len),
        sampling=new.sampling,
        stop=StopRule(
            eos_token_ids=() if new.ignore_eos else tuple(new.eos_token_ids),
            stop_token_ids=tuple(new.stop_token_ids),
            min_tokens=new.sampling.min_tokens,
        ),
        arrived_s=new.arrived_s,
    )


def refusal(new: NewRequest, config: SchedulerConfig) -> str | None:
    """Why the request can't be served, with the value and the limit; None when it can."""
    num_prompt = len(new.prompt_token_ids)
    capacity = config.num_blocks * config.block_size
    if num_prompt == 0:
        return "the prompt has 0 tokens, at least 1 is needed"
    if new.max_tokens < 1:
        return f"max_tokens is {new.max_tokens}, at least 1 is needed"
    if num_prompt >= config.max_model_len:
        return f"the prompt has {num_prompt} tokens, it must be shorter than max_model_len = {config.max_model_len}"
    if min(num_prompt + new.max_tokens, config.max_model_len) > capacity:
        return (
            f"prompt + max_tokens = {num_prompt} + {new.max_tokens} tokens, the whole KV cache holds {capacity} "
            f"({config.num_blocks} blocks of {config.block_size})"
        )
    return _foreign_ids(new, config.vocab_size)


def _foreign_ids(new: NewRequest, vocab_size: int) -> str | None:
    masked = new.sampling.stop_token_ids if new.sampling.min_tokens > 0 else ()
    biased = [token_id for token_id, _ in new.sampling.logit_bias]
    for what, ids in (("the prompt", new.prompt_token_ids), ("stop_token_ids", masked), ("logit_bias", biased)):
        if len(ids) == 0:
            continue
        low, high = _bounds(ids)
        if low < 0 or high >= vocab_size:
            return f"{what} holds token id {low if low < 0 else high}, ids are 0 to {vocab_size - 1}"
    return None


def _bounds(ids: Ints | Sequence[int]) -> tuple[int, int]:
    """The least and the largest; a client's integers may be larger than any array's."""
    return (int(ids.min()), int(ids.max())) if isinstance(ids, np.ndarray) else (min(ids), max(ids))
