"""`/v1/responses`: what goes out, in OpenAI's words."""

from __future__ import annotations

import secrets
from typing import Any, Literal

from pydantic import BaseModel, Field

from .chat_protocol import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


def _new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


class OutputText(BaseModel):
    """A message's text."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    logprobs: list[TokenLogprob] = Field(default_factory=list)


class OutputMessage(BaseModel):
    """What the model says."""

    id: str = Field(default_factory=lambda: _new_id("msg"))
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus = "in_progress"
    content: list[OutputText] = Field(default_factory=list)


class ReasoningText(BaseModel):
    """Reasoning as the model wrote it."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputReasoning(BaseModel):
    """What the model thinks before it answers."""

    id: str = Field(default_factory=lambda: _new_id("rs"))
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus = "in_progress"
    summary: list[Any] = Field(default_factory=list, max_length=0)
    content: list[ReasoningText] = Field(default_factory=list)
    encrypted_content: None = None


class OutputCall(BaseModel):
    """A function that the model asks for; `arguments` is JSON text, whole where the call is completed."""

    id: str = Field(default_factory=lambda: _new_id("fc"))
    type: Literal["function_call"] = "function_call"
    status: ItemStatus = "in_progress"
    call_id: str
    name: str
    arguments: str = ""


OutputItem = OutputReasoning | OutputMessage | OutputCall


class InputTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int  # found in the prefix cache
    cache_write_tokens: int = 0  # nobody pays for those that are written


class OutputTokensDetails(BaseModel):
    """Of the answer's tokens."""

    reasoning_tokens: int  # as many as the reasoning's text has when it is encoded again


class ResponsesUsage(BaseModel):
    """How many tokens a request took."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer isn't whole."""

    reason: Literal["max_output_tokens"]


class ResponseFailure(BaseModel):
    """Why there is no answer, or no more of it."""

    code: Literal["server_error"] = "server_error"
    message: str


class ResponseObject(BaseModel):
    """An answer, and what it was asked with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem] = Field(default_factory=list)
    usage: ResponsesUsage | None = None

    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    reasoning: dict[str, Any]
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    user: str | None
    background: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    truncation: Literal["disabled"] = "disabled"
