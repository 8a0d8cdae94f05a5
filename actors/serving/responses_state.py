"""What `/v1/responses` puts around its items: the answer's state, its tokens' numbers, and what it was asked with.

Settings are told as they hold here, not as they were wished for: nothing is stored, and no effort is made.
"""

from __future__ import annotations

import time
from typing import Any

from ..outputs import CompletionOutput
from .responses_items import End, Event, ItemTable
from .responses_output import (
    IncompleteDetails,
    InputTokensDetails,
    OutputReasoning,
    OutputTokensDetails,
    ResponseFailure,
    ResponseObject,
    ResponsesUsage,
)
from .responses_protocol import ResponsesRequest
from .service import Job, Service
from .usage import usage_of


class ResponseState:
    """One answer's, from its beginning to its end."""

    def __init__(self, service: Service, body: ResponsesRequest, job: Job, items: ItemTable) -> None:
        self._service, self._job, self._items = service, job, items
        self._response = ResponseObject(
            id=job.request_id, created_at=job.created, model=service.model_name, **_settings(body, job)
        )

    def beginning(self) -> list[Event]:
        """The events before any item's."""
        response = self._response.model_dump()
        return [{"type": f"response.{kind}", "response": response} for kind in ("created", "in_progress")]

    def ended(self, output: CompletionOutput) -> ResponseObject:
        """The response of an answer that has come to its end; its items are finished."""
        if output.finish_reason == "abort":
            return self.failed("the engine has ended the request")
        cut = output.finish_reason == "length"
        return self._with(
            status="incomplete" if cut else "completed",
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if cut else None,
            completed_at=None if cut else int(time.time()),
            usage=self._usage(),
        )

    def failed(self, message: str) -> ResponseObject:
        """The response of an answer that breaks off."""
        self._items.break_off()
        return self._with(status="failed", error=ResponseFailure(message=message))

    def _with(self, **fields: Any) -> ResponseObject:
        return self._response.model_copy(update=fields | {"output": self._items.output})

    def _usage(self) -> ResponsesUsage:
        usage = usage_of(self._job.answers)
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        reasoning = min(self._num_reasoning_tokens(), usage.completion_tokens)
        return ResponsesUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
            total_tokens=usage.total_tokens,
        )

    def _num_reasoning_tokens(self) -> int:
        """Those of the reasoning's text, encoded again: which tokens it came from, nobody has noted."""
        texts = [part.text for item in self._items.output if isinstance(item, OutputReasoning) for part in item.content]
        return sum(map(len, self._service.tokenizer.encode(texts, add_special_tokens=False))) if texts else 0


def ending(response: ResponseObject) -> Event:
    """A stream's last event."""
    return {"type": f"response.{response.status}", "response": response.model_dump()}


def end_of(output: CompletionOutput) -> End:
    """How the last item ends."""
    return "completed" if output.finish_reason == "stop" else "incomplete"


def _settings(body: ResponsesRequest, job: Job) -> dict[str, Any]:
    """What the request asked for, or what holds where it said nothing."""
    wanted = body.text.format if body.text else None
    choice = body.tool_choice or "auto"
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": _effort(body), "summary": None},
        "temperature": job.params.temperature,
        "text": {"format": {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": job.params.top_p,
        "user": body.user,
    }


def _effort(body: ResponsesRequest) -> str | None:
    return "none" if body.reasoning and body.reasoning.effort == "none" else None
