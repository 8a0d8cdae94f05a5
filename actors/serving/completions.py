"""`/v1/completions`: prompts in, completions out, whole or as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...configs.sampling import SamplingParams
from ..answer import Answer
from ..detokenizer import Detokenizer
from ..outputs import CompletionOutput, PositionLogprobs
from ..prompts import Prompt
from .completion_logprobs import TextOffsets, completion_logprobs, echo_offsets
from .completion_protocol import CompletionLogprobs, CompletionRequest, Usage
from .envelope import Envelope
from .fields import only_one
from .reply import replied
from .service import Form, Job, Service
from .streams import DONE, sse
from .usage import usage_of

_FORM = Form("cmpl-", "prompt", "logprobs")
_KIND = "text_completion"


async def completions(service: Service, request: Request) -> Response:
    """Answers one request; raises ApiError, RequestError and EngineDeadError before anything is sent."""
    body = await service.parse(request, CompletionRequest)
    service.check_model(body.model)
    params = _params(body, service.engine.default_sampling_params)
    job = await service.job(request, _prompts(body), params, body.request_id, _FORM, _adds_special_tokens(body))
    return await replied(service, request, job, _Reply(service, body, job), bool(body.stream))


def _params(body: CompletionRequest, defaults: SamplingParams) -> SamplingParams:
    values: dict[str, Any] = {"logprobs": body.logprobs}
    if body.max_tokens is not None:
        values["max_tokens"] = body.max_tokens
    if body.echo:
        values["prompt_logprobs"] = body.logprobs
        if body.max_tokens == 0:  # the prompt alone, scored: a token is generated and left out
            values["max_tokens"] = 1
    return body.sampling_params(defaults, **values)


def _prompts(body: CompletionRequest) -> list[Prompt]:
    if only_one(prompt=body.prompt, prompt_token_ids=body.prompt_token_ids) == "prompt_token_ids":
        return [body.prompt_token_ids or []]
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and all(isinstance(each, int) for each in prompt):
        return [prompt]  # type: ignore[list-item]
    return list(prompt or ())  # type: ignore[arg-type]


def _adds_special_tokens(body: CompletionRequest) -> bool:
    return body.add_special_tokens is not False


class _Reply:
    """A job's answers in the API's form."""

    def __init__(self, service: Service, body: CompletionRequest, job: Job) -> None:
        self._service, self._body, self._job = service, body, job
        self._envelope = Envelope(service, body, job, self._usage)
        self._offsets: dict[int, TextOffsets] = {}  # by choice
        self._is_echo_only = bool(body.echo) and body.max_tokens == 0
        self._echoes = [self._prompt_text(answer) for answer in job.answers] if body.echo else []

    def whole(self) -> dict[str, Any]:
        """The response of a request that has ended."""
        choices = [self._choice(answer, output) for answer in self._job.answers for output in self._outputs(answer)]
        return self._envelope.whole(_KIND, choices)

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The response as events; those of one step of the engine travel together."""
        async with aclosing(self._service.run(self._job)) as steps:
            async for moved in steps:
                choices = [self._choice(answer, output) for answer in moved for output in self._deltas(answer)]
                yield b"".join(map(sse, self._envelope.chunks(_KIND, choices)))
        if self._body.wants_usage:
            yield sse(self._envelope.whole(_KIND, []))
        yield DONE

    def _outputs(self, answer: Answer) -> Sequence[CompletionOutput]:
        return self._trimmed(answer.output().outputs)

    def _deltas(self, answer: Answer) -> Sequence[CompletionOutput]:
        """What is new of the completions that have moved."""
        return [each for each in self._trimmed(answer.news()) if each.text or each.token_ids or each.finish_reason]

    def _trimmed(self, outputs: Sequence[CompletionOutput]) -> Sequence[CompletionOutput]:
        if self._is_echo_only:
            for each in outputs:
                each.text, each.token_ids, each.logprobs = "", [], each.logprobs and []
                each.finish_reason = each.finish_reason and "length"
        return outputs

    def _choice(self, answer: Answer, output: CompletionOutput) -> dict[str, Any]:
        index = answer.index * self._job.params.n + output.index
        is_first = index not in self._offsets
        if is_first:
            self._offsets[index] = self._text_offsets(answer)
        echo = self._echoes[answer.index] if self._body.echo and is_first else ""
        logprobs = None if output.logprobs is None else self._logprobs(answer, output, index, echo).model_dump()
        choice: dict[str, Any] = {
            "index": index,
            "text": echo + output.text,
            "logprobs": logprobs,
            "finish_reason": output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self._body.return_token_ids:
            choice["token_ids"] = output.token_ids
            if is_first:
                choice["prompt_token_ids"] = answer.prompt.token_ids
        return choice

    def _prompt_text(self, answer: Answer) -> str:
        text = answer.prompt.text
        return self._service.tokenizer.decode(answer.prompt.token_ids) if text is None else text

    def _text_offsets(self, answer: Answer) -> TextOffsets:
        tokenizer, prompt, skips = self._service.engine.tokenizer, answer.prompt, self._job.params.skip_special_tokens
        detokenizer = None if tokenizer is None else Detokenizer(tokenizer, prompt.token_ids, skips)
        return TextOffsets(detokenizer, len(self._echoes[answer.index]) if self._body.echo else 0)

    def _logprobs(self, answer: Answer, output: CompletionOutput, index: int, echo: str) -> CompletionLogprobs:
        """The output's columns, behind the prompt's where that is echoed."""
        scored = list(zip(output.logprobs or (), output.token_ids, strict=False))  # a stop string may cut the ids short
        tables: list[PositionLogprobs | None] = [table for table, _ in scored]
        token_ids = [token_id for _, token_id in scored]
        offsets = self._offsets[index].take(token_ids)
        if echo and answer.prompt_logprobs is not None:
            prompt = answer.prompt.token_ids
            tables, token_ids = [*answer.prompt_logprobs, *tables], [*prompt, *token_ids]
            offsets = [*echo_offsets(echo, prompt, self._service.tokenizer), *offsets]
        tokenizer = self._service.engine.tokenizer
        return completion_logprobs(tables, token_ids, offsets, tokenizer, bool(self._body.logprobs))

    def _usage(self) -> Usage:
        usage = usage_of(self._job.answers)
        if self._is_echo_only:
            usage.completion_tokens, usage.total_tokens = 0, usage.prompt_tokens
        return usage
