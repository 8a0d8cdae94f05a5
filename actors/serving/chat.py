"""`/v1/chat/completions`: a conversation in, messages out, whole or as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ...configs.sampling import SamplingParams
from ...configs.structured import StructuredOutputsParams
from ..outputs import CompletionOutput, PositionLogprobs
from ..prompts import Prompt
from .chat_constraint import constraint_of
from .chat_delta import ChatDelta, joined
from .chat_logprobs import chat_logprobs
from .chat_parser import ChatParser, chat_parser
from .chat_prompt import chat_prompt
from .chat_protocol import ChatRequest
from .envelope import Envelope
from .errors import refused
from .fields import only_one
from .reply import replied
from .service import Form, Job, Service, offloaded
from .streams import DONE, sse
from .usage import usage_of

_FORM = Form("chatcmpl-", "messages", "top_logprobs")
_WHOLE, _CHUNK = "chat.completion", "chat.completion.chunk"


async def chat_completions(service: Service, request: Request) -> Response:
    """Answers one request; raises ApiError, RequestError and EngineDeadError before anything is sent."""
    body = await service.parse(request, ChatRequest)
    service.check_model(body.model)
    job = await chat_job(service, request, body, _FORM)
    return await replied(service, request, job, _Reply(service, body, job), bool(body.stream))


async def chat_job(
    service: Service, request: Request, body: ChatRequest, form: Form, format_field: str = "response_format"
) -> Job:
    """A conversation as answers to come; raises ApiError and RequestError for one that can't be served.

    `format_field` is what the client has called the response format.
    """
    field, constraint = constraint_of(body, service.config.tool_call_parser, format_field)
    params = _params(body, service, constraint)
    prompt = await offloaded(request, lambda: _prompt(body, service, params))
    return await service.job(request, [prompt], params, body.request_id, form, constrained_by=field)


def parser_of(body: ChatRequest, service: Service, prompt: str) -> ChatParser:
    """What reads one message of the answer to a conversation that has become this prompt."""
    reads_calls = bool(body.tools) and body.tool_choice != "none"
    tool = service.config.tool_call_parser if reads_calls else None
    return chat_parser(tool, service.config.reasoning_parser, prompt)


def only_wanted(body: ChatRequest, delta: ChatDelta) -> ChatDelta:
    """The delta without what the client has asked to leave out."""
    if body.parallel_tool_calls is False:
        delta.tool_calls = [call for call in delta.tool_calls if call.index == 0]
    if body.include_reasoning is False:
        delta.reasoning = ""
    return delta


def _params(body: ChatRequest, service: Service, constraint: StructuredOutputsParams | None) -> SamplingParams:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        only_one(max_tokens=body.max_tokens, max_completion_tokens=body.max_completion_tokens)
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if body.logprobs and service.engine.tokenizer is None:
        raise refused("logprobs need tokens' texts, and there is no tokenizer (skip_tokenizer_init)", "logprobs")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    values: dict[str, Any] = {"max_tokens": limit, "logprobs": logprobs, "structured_outputs": constraint}
    return body.sampling_params(service.engine.default_sampling_params, **values)


def _prompt(body: ChatRequest, service: Service, params: SamplingParams) -> Prompt:
    if body.prompt_token_ids is not None:
        return body.prompt_token_ids
    if body.tools and body.tool_choice in (None, "auto") and service.config.tool_call_parser is None:
        raise refused("tools can't be chosen: the server runs without tool_call_parser", "tools")
    return chat_prompt(body, service.tokenizer, wants_thinking=params.structured_outputs is None)


class _Reply:
    """A job's answer in the API's form; a parser for each choice."""

    def __init__(self, service: Service, body: ChatRequest, job: Job) -> None:
        self._service, self._body, self._job = service, body, job
        self._envelope = Envelope(service, body, job, lambda: usage_of(job.answers))
        (self._answer,) = job.answers
        prompt = self._answer.prompt.text or ""
        self._parsers = [parser_of(body, service, prompt) for _ in range(job.params.n)]
        self._has_begun = [False] * job.params.n

    def whole(self) -> dict[str, Any]:
        """The response of a request that has ended."""
        choices = [self._whole_choice(output) for output in self._answer.output().outputs]
        response = self._envelope.whole(_WHOLE, choices)
        if self._body.return_token_ids:
            response["prompt_token_ids"] = self._answer.prompt.token_ids
        return response

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The response as events; those of one step of the engine travel together."""
        async with aclosing(self._service.run(self._job)) as steps:
            async for moved in steps:
                news = (self._choice(output) for answer in moved for output in answer.news())
                choices = [choice for choice in news if choice is not None]
                yield b"".join(map(sse, self._envelope.chunks(_CHUNK, choices)))
        if self._body.wants_usage:
            yield sse(self._envelope.whole(_CHUNK, []))
        yield DONE

    def _whole_choice(self, output: CompletionOutput) -> dict[str, Any]:
        parser = self._parsers[output.index]
        said = joined([only_wanted(self._body, delta) for delta in (parser.feed(output.text), parser.finish())])
        message: dict[str, Any] = {"role": "assistant", "content": said.content or None, "refusal": None}
        if said.tool_calls:
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in said.tool_calls
            ]
        elif message["content"] is None:
            message["content"] = ""
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        return {"index": output.index, "message": message} | self._ending(output, parser)

    def _choice(self, output: CompletionOutput) -> dict[str, Any] | None:
        """What a chunk says; None where nothing has come: bytes that are no character yet, or a tag's beginning."""
        parser = self._parsers[output.index]
        deltas = [parser.feed(output.text)] + ([parser.finish()] if output.finished() else [])
        delta = _as_json(only_wanted(self._body, each) for each in deltas)
        is_first = not self._has_begun[output.index]
        if not (delta or output.finished() or is_first or self._body.return_token_ids or output.logprobs):
            return None
        if is_first:
            self._has_begun[output.index] = True
            delta = {"role": "assistant", "content": ""} | delta
        return {"index": output.index, "delta": delta} | self._ending(output, parser)

    def _ending(self, output: CompletionOutput, parser: ChatParser) -> dict[str, Any]:
        """What stands beside the message: logprobs, and why it ended."""
        called = output.finish_reason == "stop" and parser.num_calls > 0
        beside: dict[str, Any] = {
            "logprobs": None if output.logprobs is None else self._logprobs(output.logprobs, output.token_ids),
            "finish_reason": "tool_calls" if called else output.finish_reason,
            "stop_reason": output.stop_reason,
        }
        if self._body.return_token_ids:
            beside["token_ids"] = output.token_ids
        return beside

    def _logprobs(self, tables: Sequence[PositionLogprobs], token_ids: Sequence[int]) -> dict[str, Any]:
        return chat_logprobs(tables, token_ids, self._service.tokenizer, self._body.top_logprobs or 0)


def _as_json(deltas: Iterable[ChatDelta]) -> dict[str, Any]:
    """Deltas as one of the API's; what is empty is left out."""
    content = reasoning = ""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        content += delta.content
        reasoning += delta.reasoning
        for piece in delta.tool_calls:
            call: dict[str, Any] = {"index": piece.index, "function": {"arguments": piece.arguments}}
            if piece.name is not None:
                call |= {"id": piece.id, "type": "function"}
                call["function"] = {"name": piece.name, "arguments": piece.arguments}
            calls.append(call)
    named = {"content": content, "reasoning_content": reasoning, "tool_calls": calls}
    return {name: value for name, value in named.items() if value}
