"""The client's side of an engine, shared by the synchronous and the asynchronous face.

Prompts become answers to come, and events are brought to them. Nothing here waits: events arrive on the client's own
thread and are handed on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import uuid4

from ..configs.sampling import SamplingParams
from ..errors import RequestError
from ..scheduler.messages import NewRequest, TokenEvent
from .answer import Answer
from .completion import Completion
from .detokenizer import Detokenizer
from .prompts import Encoded, Limits, Prompt, PromptError, check_prompt, encode
from .tokenizer import Tokenizer


class Client(Protocol):
    """The part of `EngineClient` that is used here."""

    @property
    def is_dead(self) -> bool: ...

    def submit(self, request: NewRequest, on_event: Callable[[TokenEvent], None]) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def close(self) -> None: ...


MakeRequest = Callable[[str, Sequence[int], SamplingParams, int], NewRequest]
"""Resolves (request id, prompt, params, index of the completion) against the engine's model."""


@dataclass(slots=True)
class Arrival:
    """An event, whom it is for, and when it came."""

    answer: Answer
    event: TokenEvent
    time_s: float


class Frontdesk:
    """Submits requests to one engine and brings its events to their answers."""

    def __init__(self, client: Client, make_request: MakeRequest, limits: Limits, tokenizer: Tokenizer | None) -> None:
        self.client = client
        self.tokenizer = tokenizer
        self.limits = limits
        self._make_request = make_request

    def prepare(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams],
        add_special_tokens: bool = True,
    ) -> list[Answer]:
        """Every prompt as an answer to come, in order; raises PromptError before anything is submitted."""
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else _several(params)
        if len(each) != len(prompts):
            raise RequestError(f"{len(each)} sampling params for {len(prompts)} prompts; give one, or one for each")
        encoded = encode(prompts, self.tokenizer, add_special_tokens)
        return [self.answer(index, *pair) for index, pair in enumerate(zip(encoded, each, strict=True))]

    def answer(self, index: int, prompt: Encoded, params: SamplingParams) -> Answer:
        """One answer to come; raises PromptError where the engine could not serve it."""
        if params.stop_strings and self.tokenizer is None:
            problem = "has stop strings, which need text; there is no tokenizer (skip_tokenizer_init)"
            raise PromptError(index, problem, field="stop")
        check_prompt(index, prompt.token_ids, params.max_tokens or 1, self.limits)
        name = uuid4().hex[:16]
        names = [name] if params.n == 1 else [f"{name}.{at}" for at in range(params.n)]
        others = params.model_copy(update={"prompt_logprobs": None})
        try:
            requests = [
                self._make_request(each, prompt.token_ids, others if at else params, at)
                for at, each in enumerate(names)
            ]
        except RequestError as error:
            raise PromptError(index, str(error), field=error.field) from None
        completions = [self._completion(at, prompt, params) for at in range(params.n)]
        for completion, request in zip(completions, requests, strict=True):
            completion.ending_ids = frozenset((*request.eos_token_ids, *request.stop_token_ids))
        return Answer(index, name, prompt, completions, requests, self.tokenizer, params.output_kind)

    def refusal(self, index: int, prompt: Encoded, params: SamplingParams, message: str) -> Answer:
        """A finished answer that says why there is no other; nothing decodes its ids, which may be the reason."""
        answer = Answer(index, uuid4().hex[:16], prompt, [Completion(0, params, None, None)], [])
        answer.refuse(message)
        return answer

    def submit(self, answer: Answer, deliver: Callable[[Arrival], None]) -> None:
        """Sends the answer's requests; `deliver` is called on the client's thread."""
        answer.metrics.arrival_time = time.monotonic()

        def on_event(event: TokenEvent) -> None:
            deliver(Arrival(answer, event, time.monotonic()))

        for request in answer.requests:
            self.client.submit(request, on_event)

    def accept(self, arrival: Arrival) -> Answer:
        """Brings an event to its answer; aborts in the engine what a stop string has ended."""
        for request_id in arrival.answer.accept(arrival.event, arrival.time_s):
            self.client.abort(request_id)
        return arrival.answer

    def abort(self, answers: Sequence[Answer]) -> None:
        """Tells the engine that nobody waits for these; for those that have ended nothing happens."""
        for answer in answers:
            for request_id in answer.open_ids:
                self.client.abort(request_id)

    def _completion(self, index: int, prompt: Encoded, params: SamplingParams) -> Completion:
        detokenizer = None
        if self.tokenizer is not None and params.detokenize:
            detokenizer = Detokenizer(self.tokenizer, prompt.token_ids, params.skip_special_tokens)
        return Completion(index, params, detokenizer, self.tokenizer)


def _several(params: Sequence[SamplingParams]) -> list[SamplingParams]:
    if isinstance(params, Sequence) and all(isinstance(each, SamplingParams) for each in params):
        return list(params)
    raise RequestError("sampling params are a SamplingParams, or a list with one for each prompt; not " + _kind(params))


def _kind(value: object) -> str:
    """What a value is, in words."""
    inner = sorted({type(each).__name__ for each in value}) if isinstance(value, list | tuple) else []
    return type(value).__name__ + (f" of {', '.join(inner)}" if inner else "")
