"""What clients and the scheduler say to each other: requests in, token events out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .plan import GREEDY, Ints, Logprobs, Sampling, ints

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(slots=True)
class NewRequest:
    """One sequence to generate. Text, stop strings and `n` are the client's business."""

    request_id: str  # unique within its client
    prompt_token_ids: Ints
    max_tokens: int
    sampling: Sampling = GREEDY
    client_id: str = ""
    stop_token_ids: tuple[int, ...] = ()  # end the request; not part of `ignore_eos`
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    arrived_s: float = 0.0  # on the clock of the scheduler's owner, who alone reads it; no plan depends on it

    @property
    def key(self) -> tuple[str, str]:
        """Identity across clients."""
        return (self.client_id, self.request_id)


@dataclass(slots=True)
class TokenEvent:
    """New tokens of a request, its end, or both.

    A client that has seen `start` tokens so far appends; a gap or an overlap shows in `start`.
    """

    client_id: str
    request_id: str
    start: int  # index, in the request's output, of the first of token_ids
    token_ids: Ints = field(default_factory=ints)
    logprobs: list[Logprobs] = field(default_factory=list)  # one for each token, if asked for
    prompt_logprobs: list[Logprobs] = field(default_factory=list)  # chunks, in order
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None  # the stop token id (not eos) that ended it
    error: str | None = None  # with finish_reason "error": names the value and the limit
