"""What a request gives back, with vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    """One token's log-probability at one position."""

    logprob: float
    rank: int | None = None  # 1 is the most likely token of the vocabulary
    decoded_token: str | None = None  # None without a tokenizer


PositionLogprobs = dict[int, Logprob]  # token id -> Logprob: the scored token, and the likeliest if asked for


@dataclass(slots=True)
class CompletionOutput:
    """One of a request's `n` completions, as far as it has come."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None  # None unless logprobs were asked for
    logprobs: list[PositionLogprobs] | None = None  # one for each of token_ids
    finish_reason: str | None = None  # "stop", "length", "abort" or "error"; None: still running
    stop_reason: int | str | None = None  # the stop token id or stop string; None: end of sequence, or another reason

    def finished(self) -> bool:
        """Whether nothing follows."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestMetrics:
    """When things happened, in seconds of `time.monotonic()`."""

    arrival_time: float
    first_token_time: float | None = None
    finished_time: float | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        return None if self.first_token_time is None else self.first_token_time - self.arrival_time


@dataclass(slots=True)
class RequestOutput:
    """A request's prompt and its completions; a snapshot while it runs, the answer once `finished`."""

    request_id: str
    prompt: str | None  # None when the prompt came as token ids
    prompt_token_ids: list[int]
    prompt_logprobs: list[PositionLogprobs | None] | None  # the first position has none
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    error: str | None = None  # why it was refused or failed, with finish_reason "error"

    @property
    def num_generated_tokens(self) -> int:
        """Of all completions together."""
        return sum(len(completion.token_ids) for completion in self.outputs)

    def tpot_s(self) -> float | None:
        """Mean time for each token after the first, over the longest completion; None below two tokens."""
        longest = max((len(completion.token_ids) for completion in self.outputs), default=0)
        first, end = self.metrics.first_token_time, self.metrics.finished_time
        if longest < 2 or first is None or end is None:
            return None
        return (end - first) / (longest - 1)
