"""One request of a user, from its prompt to its last token: the engine's requests and their completions together.

Pure: events and their times come in, the requests to abort and snapshots come out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from ..configs.sampling import RequestOutputKind
from ..scheduler.messages import NewRequest, TokenEvent
from .completion import Completion, position_logprobs
from .outputs import CompletionOutput, PositionLogprobs, RequestMetrics, RequestOutput
from .prompts import Encoded
from .tokenizer import Tokenizer


@dataclass(slots=True)
class Answer:
    """A request with `n` completions is `n` requests of the engine; the first alone asks for prompt logprobs."""

    index: int  # of its prompt among those given together
    request_id: str
    prompt: Encoded
    completions: list[Completion]
    requests: list[NewRequest]  # one for each completion; none when it was refused before it was submitted
    tokenizer: Tokenizer | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(time.monotonic()))
    prompt_logprobs: list[PositionLogprobs | None] | None = None
    num_cached_tokens: int = 0
    _places: dict[str, int] = field(init=False)  # of the engine's requests, by their ids

    def __post_init__(self) -> None:
        self._places = {request.request_id: at for at, request in enumerate(self.requests)}

    @property
    def finished(self) -> bool:
        """Whether every completion has ended."""
        return all(completion.finished for completion in self.completions)

    @property
    def error(self) -> str | None:
        """The first completion's error, if one has any."""
        return next((c.error for c in self.completions if c.error is not None), None)

    @property
    def open_ids(self) -> list[str]:
        """The engine's requests that still run."""
        pairs = zip(self.requests, self.completions, strict=False)
        return [request.request_id for request, completion in pairs if not completion.finished]

    def accept(self, event: TokenEvent, time_s: float) -> list[str]:
        """Takes in an event that came at `time_s`; the requests that the engine is to abort, which nobody reads on."""
        at = self._places[event.request_id]
        if at == 0:
            self._take_prompt(event)
        if len(event.token_ids) and self.metrics.first_token_time is None:
            self.metrics.first_token_time = time_s
        stopped = self.completions[at].accept(event)
        if self.finished and self.metrics.finished_time is None:
            self.metrics.finished_time = time_s
        return [event.request_id] if stopped else []

    def refuse(self, message: str) -> None:
        """Answers it with an error that no engine has said."""
        for completion in self.completions:
            completion.fail(message)

    def output(self, delta: bool = False) -> RequestOutput:
        """A snapshot of everything, or of what the completions have gained since the last one.

        The prompt's ids are shared by all of a request's outputs, so that a step costs nothing for a long prompt.
        """
        return RequestOutput(
            request_id=self.request_id,
            prompt=self.prompt.text,
            prompt_token_ids=self.prompt.token_ids,
            prompt_logprobs=self.prompt_logprobs,
            outputs=[each.delta() if delta else each.snapshot() for each in self.completions],
            finished=self.finished,
            metrics=self.metrics,
            num_cached_tokens=self.num_cached_tokens,
            error=self.error,
        )

    def news(self) -> list[CompletionOutput]:
        """What each completion that has moved has gained since the last call, or since the last delta."""
        return [output for each in self.completions if (output := each.news()) is not None]

    def next_output(self) -> RequestOutput | None:
        """What a stream yields now, by the request's `output_kind`; None: nothing yet."""
        if self.output_kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        return self.output(delta=self.output_kind is RequestOutputKind.DELTA)

    def _take_prompt(self, event: TokenEvent) -> None:
        self.num_cached_tokens = max(self.num_cached_tokens, event.num_cached_tokens)
        for chunk in event.prompt_logprobs:
            if self.prompt_logprobs is None:
                self.prompt_logprobs = [None]
            repeated = len(self.prompt_logprobs) - chunk.start
            self.prompt_logprobs.extend(position_logprobs(chunk, self.tokenizer)[repeated:])
