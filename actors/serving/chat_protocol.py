"""`/v1/chat/completions`: what comes in and what goes out, in OpenAI's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ...configs.sampling import MAX_LOGPROBS
from .completion_protocol import Usage
from .fields import Items, PlainValues, SamplingFields, Unserved

_STRICT = ConfigDict(extra="forbid", strict=True, protected_namespaces=())
_OPEN = ConfigDict(extra="allow", strict=True)  # what a chat template may know of


def _text_alone(modalities: list[str]) -> list[str]:
    if modalities != ["text"]:
        raise ValueError("only text is generated here")
    return modalities


class FunctionCall(BaseModel):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class ContentPart(BaseModel):
    """A piece of a message; only text can be served."""

    model_config = _OPEN

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """A message of the conversation."""

    model_config = _OPEN

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Items[ContentPart] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: Items[ToolCall] | None = None


class FunctionDefinition(BaseModel):
    """What the model may call."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """A function among the tools."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(BaseModel):
    """A function's name alone."""

    name: str


class NamedToolChoice(BaseModel):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(BaseModel):
    """A named schema."""

    model_config = ConfigDict(extra="ignore", strict=True, protected_namespaces=())

    name: str
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the answer must be."""

    model_config = _STRICT

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_one_is_named(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError(f"type {self.type!r} and json_schema don't go together; json_schema needs a schema")
        return self


class ChatRequest(SamplingFields):
    """A conversation to go on with."""

    messages: Items[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, lt=1 << 63, description="most tokens to generate")
    logprobs: bool | None = False
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="with logprobs: alternatives to report for each token"
    )
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call; the answer ends behind it")
    chat_template_kwargs: PlainValues | None = None
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    include_reasoning: bool | None = True

    modalities: Annotated[list[str], AfterValidator(_text_alone)] | None = Field(None, description="at most: text")
    audio: Unserved = Field(None, description="null, as in the next seven")
    function_call: Unserved = None
    functions: Unserved = None
    moderation: Unserved = None
    prediction: Unserved = None
    reasoning_effort: Unserved = None
    verbosity: Unserved = None
    web_search_options: Unserved = None

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs}, but logprobs isn't true")
        if self.tool_choice not in (None, "none") and not self.tools:
            raise ValueError("tool_choice needs tools")
        if isinstance(self.tool_choice, NamedToolChoice):
            names = [tool.function.name for tool in self.tools or ()]
            if self.tool_choice.function.name not in names:
                raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}; the tools are {names}")
        return self


class TopLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The same, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """An entry for each token."""

    content: list[TokenLogprob]


class AnswerMessage(BaseModel):
    """What the model says."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"] | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None


class ChatResponse(BaseModel):
    """All answers to a conversation."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None
