"""What the endpoints share: one engine, its limits, and the account of every request from its arrival to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from ...configs.sampling import SamplingParams
from ...configs.serving import ServeConfig
from ..answer import Answer
from ..prompts import Limits, Prompt, PromptError
from ..tokenizer import Tokenizer
from .admission import Admission
from .errors import ApiError, malformed, refused, refused_prompt, status_of
from .metrics import FinishedRequest, ServingMetrics
from .request_log import log_request
from .streams import ClientGoneError

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
CheckGrammar = Callable[[str], Awaitable[str | None]]
"""The problem of a grammar's spec in words, or None."""

_LONG_BYTES = 20_000  # of a body whose text is encoded on another thread, so that the others' streams go on
_TEXTS = ThreadPoolExecutor(2, "texts")  # of their own: what asks whether the engine lives waits behind no text
_CLIENT_GONE = 499  # the status in logs and metrics; nobody reads it


class Engine(Protocol):
    """The part of `AsyncEngine` that the endpoints use."""

    @property
    def limits(self) -> Limits: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def default_sampling_params(self) -> SamplingParams: ...

    def prepare(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | None = None, add_special_tokens: bool = True
    ) -> list[Answer]: ...

    def run(self, answers: Sequence[Answer]) -> AsyncGenerator[list[Answer]]: ...


@dataclass(slots=True, frozen=True)
class Form:
    """What an endpoint calls its answers and its prompts."""

    id_prefix: str
    prompt_field: str
    logprobs_field: str  # which says how many alternatives are to be reported


@dataclass(slots=True)
class Job:
    """One HTTP request that has become answers to come."""

    endpoint: str
    form: Form
    request_id: str
    answers: list[Answer]
    params: SamplingParams
    start_s: float  # when it had arrived
    created: int = field(default_factory=lambda: int(time.time()))
    num_output_tokens: dict[int, int] = field(default_factory=dict)  # by its answers' index: those that are counted
    first_token_s: dict[int, float] = field(default_factory=dict)  # by its answers' index: when it was handed out

    @property
    def num_sequences(self) -> int:
        """Sequences that the engine generates for it."""
        return sum(len(answer.completions) for answer in self.answers)

    def note_first_tokens(self, moved: Sequence[Answer]) -> None:
        """That these are handed out, some of them for the first time.

        The engine's own stamps are older: a token may wait for its turn of the event loop, as a request does before.
        """
        for answer in moved:
            if answer.metrics.first_token_time is not None:
                self.first_token_s.setdefault(answer.index, time.monotonic())

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of its sequences' prompts."""
        return sum(len(request.prompt_token_ids) for answer in self.answers for request in answer.requests)

    def num_new_tokens(self, moved: Sequence[Answer]) -> int:
        """Output tokens of these that have come since the last call."""
        count = 0
        for answer in moved:
            num_tokens = sum(len(completion.token_ids) for completion in answer.completions)
            count += num_tokens - self.num_output_tokens.get(answer.index, 0)
            self.num_output_tokens[answer.index] = num_tokens
        return count

    def most_tokens(self, max_model_len: int) -> int:
        """What its sequences can come to, prompts included."""
        return sum(
            min(len(request.prompt_token_ids) + request.max_tokens, max_model_len)
            for answer in self.answers
            for request in answer.requests
        )


class Service:
    """One replica's engine, as the endpoints see it. For one event loop."""

    def __init__(
        self, engine: Engine, config: ServeConfig, metrics: ServingMetrics, check_grammar: CheckGrammar
    ) -> None:
        self.engine = engine
        self.config = config
        self.metrics = metrics
        self.admission = Admission(config)
        self.model_name = config.served_model_name or "model"
        self.started = int(time.time())
        self._check_grammar = check_grammar

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; raises ApiError where the engine has none."""
        if (tokenizer := self.engine.tokenizer) is None:
            raise refused("the server has no tokenizer (skip_tokenizer_init): send prompt_token_ids")
        return tokenizer

    async def parse(self, request: Request, model: type[Model]) -> Model:
        """The body as this model; raises ApiError for one that is too large, too slow or malformed."""
        try:
            with self.admission.body() as take:
                return model.model_validate_json(await self._body(request, take))
        except ValidationError as error:
            raise malformed(error, model) from None

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 for another model than the served one."""
        if name is not None and name != self.model_name:
            raise ApiError(
                404,
                f"the model {name[:256]!r} does not exist; {self.model_name!r} is served",
                param="model",
                code="model_not_found",
            )

    async def job(
        self,
        request: Request,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        request_id: str | None,
        form: Form,
        add_special_tokens: bool = True,
        constrained_by: str = "structured_outputs",
    ) -> Job:
        """Prompts and parameters as answers to come; raises RequestError or ApiError for what can't be served.

        `constrained_by` is the field that a constraint on the text comes from.
        """
        self._check_bounds(prompts, params, form)
        self.admission.check(len(prompts) * params.n)  # before anything is made for so many
        grammar = params.structured_outputs
        if grammar is not None and (problem := await self._check_grammar(grammar.spec)) is not None:
            raise refused(problem, constrained_by)
        try:
            answers = await offloaded(request, lambda: self.engine.prepare(prompts, params, add_special_tokens))
        except PromptError as error:
            raise refused_prompt(error, len(prompts), form.prompt_field) from None
        request_id = form.id_prefix + (request_id or answers[0].request_id)
        return Job(request.url.path, form, request_id, answers, params, request.state.arrived_s)

    async def run(self, job: Job) -> AsyncGenerator[list[Answer]]:
        """As the engine's `run`, between admission and the request's line in the log. Raises ApiError when full."""
        most_tokens = job.most_tokens(self.engine.limits.max_model_len)
        with self.admission.admitted(job.num_sequences, job.num_prompt_tokens, most_tokens) as take:
            self.metrics.arrived(len(job.answers))
            status = 200
            try:
                async with aclosing(self.engine.run(job.answers)) as steps:
                    async for moved in steps:
                        take(job.num_new_tokens(moved))
                        if len(job.first_token_s) < len(job.answers):
                            job.note_first_tokens(moved)
                        yield moved
            except (GeneratorExit, asyncio.CancelledError, ClientGoneError):
                status = 200 if all(answer.finished for answer in job.answers) else _CLIENT_GONE
                raise
            except Exception as error:
                status = status_of(error)
                if isinstance(error, PromptError):  # refused by the engine
                    raise refused_prompt(error, len(job.answers), None) from None
                raise
            finally:
                for answer in job.answers:
                    self._account(job, answer, status)

    async def finish(self, job: Job) -> None:
        """Runs the job to its end."""
        async with aclosing(self.run(job)) as steps:
            async for _ in steps:
                pass

    def _check_bounds(self, prompts: Sequence[Prompt], params: SamplingParams, form: Form) -> None:
        config, logprobs = self.config, form.logprobs_field
        longest = max(map(len, params.stop_strings), default=0)
        for what, param, value, limit in (
            ("prompts", "prompt", len(prompts), config.max_prompts),
            ("n", "n", params.n, config.max_n),
            (logprobs, logprobs, max(params.logprobs or 0, params.prompt_logprobs or 0), config.max_logprobs),
            ("stop strings", "stop", len(params.stop_strings), config.max_stop_strings),
            ("characters of a stop string", "stop", longest, config.max_stop_chars),
        ):
            if value > limit:
                raise refused(f"{what}: {value}, at most {limit} are allowed", param)
        if params.stop_strings and self.engine.tokenizer is None:
            raise refused("stop strings need text, and there is no tokenizer (skip_tokenizer_init)", "stop")
        if not prompts:
            raise refused("prompt is an empty list; it needs at least 1 prompt", "prompt")

    async def _body(self, request: Request, take: Callable[[int], None]) -> bytes:
        limit = self.config.max_body_bytes
        length = request.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length[:20]) > limit:
            raise _too_large(limit)
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self.config.body_timeout_s):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise _too_large(limit)
                    take(len(part))
                    parts.append(part)
        except ClientDisconnect:
            raise ClientGoneError from None
        except TimeoutError:
            raise ApiError(408, f"the body has not come within {self.config.body_timeout_s} s") from None
        request.state.num_bytes = size
        request.scope.setdefault("state", {}).setdefault("arrived_s", time.monotonic())  # unless our own server saw it
        return b"".join(parts)

    def _account(self, job: Job, answer: Answer, status: int) -> None:
        record = _record(job, answer, status)
        self.metrics.finished(record)
        log_request(record)


async def offloaded(request: Request, work: Callable[[], T]) -> T:
    """What `work` makes of a request's text; a long one's is made beside the event loop."""
    is_long: bool = request.state.num_bytes > _LONG_BYTES
    return await asyncio.get_running_loop().run_in_executor(_TEXTS, work) if is_long else work()


def _record(job: Job, answer: Answer, status: int) -> FinishedRequest:
    output = answer.output()
    reasons = {completion.finish_reason for completion in output.outputs}
    first_s = job.first_token_s.get(answer.index)
    return FinishedRequest(
        request_id=job.request_id,
        endpoint=job.endpoint,
        num_prompt_tokens=len(output.prompt_token_ids),
        num_cached_tokens=output.num_cached_tokens,
        num_output_tokens=output.num_generated_tokens,
        finish_reason="abort" if None in reasons else max(str(reason) for reason in reasons),
        ttft_s=None if first_s is None else first_s - job.start_s,
        tpot_s=output.tpot_s(),
        e2e_s=time.monotonic() - job.start_s,
        status=status,
    )


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body is larger than {limit} bytes", code="request_too_large")
