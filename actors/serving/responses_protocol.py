"""`/v1/responses`: what comes in, in OpenAI's words.

Nothing is kept between requests: whoever goes on with a conversation sends all of it, and what only a server that keeps
things could do is refused. What asks for nothing here is accepted and ignored: how hard to think, and how to sum it up
(an effort of `none` asks for an answer without thinking), verbosity, encrypted reasoning, how many of the server's own
tools may be called, of which there are none.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from ...configs.sampling import MAX_LOGPROBS
from .fields import Items, PlainValues, SamplingFields, Unserved

LOGPROBS = "message.output_text.logprobs"
Included = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
]

_LENIENT = ConfigDict(extra="ignore", strict=True, protected_namespaces=())  # answers come back with all they have
_NULL = WithJsonSchema({"type": "null"})


def _nothing_kept(value: object) -> None:
    if value is not None:
        raise ValueError("the server keeps nothing; send the whole conversation as input")


def _as_max_output_tokens(value: object) -> None:
    if value is not None:
        raise ValueError("it is called max_output_tokens here")


def _not_behind_a_request(background: bool | None) -> bool | None:
    if background:
        raise ValueError("nothing runs on without its request; the server keeps no answers")
    return background


def _never_cut(truncation: str | None) -> str | None:
    if truncation == "auto":
        raise ValueError("a conversation that is too long is refused, never cut; leave it out, or 'disabled'")
    return truncation


Kept = Annotated[Any, AfterValidator(_nothing_kept), _NULL]


class InputPart(BaseModel):
    """A piece of a message, of a call's output or of reasoning; only text can be served."""

    model_config = _LENIENT

    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(BaseModel):
    """A message, a call, a call's output, or reasoning; each has some of the fields."""

    model_config = _LENIENT

    type: str | None = Field(None, description="none: message")
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | Items[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | Items[InputPart] | None = None
    summary: Items[InputPart] | None = None


class FunctionTool(BaseModel):
    """A function that the model may call."""

    model_config = _LENIENT

    type: Literal["function"]
    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(BaseModel):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(BaseModel):
    """What the answer must be."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_one_is_named(self) -> Self:
        has_schema = self.schema_ is not None and self.name is not None
        if (self.type == "json_schema") != has_schema:
            raise ValueError(f"type {self.type!r}: json_schema needs a name and a schema, and nothing else has them")
        return self


class TextSettings(BaseModel):
    """How the answer's text is to be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = Field(None, description="accepted and ignored")


class ReasoningSettings(BaseModel):
    """How the model is to think; all but an effort of `none` is accepted and ignored."""

    model_config = _LENIENT

    effort: str | None = Field(None, description="none: without thinking, where the chat template can ask for that")
    summary: str | None = Field(None, description="reasoning comes as it is, and is not summed up")


class ResponsesRequest(SamplingFields):
    """A conversation to go on with, all of it."""

    input: str | Annotated[Items[InputItem], Field(min_length=1)]
    instructions: str | None = Field(None, description="a system message before the input")
    max_output_tokens: int | None = Field(None, ge=1, lt=1 << 63, description="most tokens to generate")
    tools: Annotated[list[FunctionTool], Field(fail_fast=True, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call; the answer ends behind it")
    text: TextSettings | None = None
    reasoning: ReasoningSettings | None = None
    include: Annotated[list[Included], Field(max_length=64)] | None = Field(
        None, description="log-probabilities are; of the others an answer has nothing"
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="alternatives to report for each token of the text"
    )
    chat_template_kwargs: PlainValues | None = None
    truncation: Annotated[Literal["auto", "disabled"] | None, AfterValidator(_never_cut)] = None
    background: Annotated[bool | None, AfterValidator(_not_behind_a_request)] = None
    max_tool_calls: int | None = Field(None, description="accepted and ignored, as is the next")
    client_metadata: dict[str, str] | None = None

    previous_response_id: Kept = Field(None, description="null, as are all that follow")
    conversation: Kept = None
    prompt: Kept = None
    max_tokens: Annotated[Any, AfterValidator(_as_max_output_tokens), _NULL] = None
    n: Unserved = None
    prompt_token_ids: Unserved = None
    return_token_ids: Unserved = None
    context_management: Unserved = None
    moderation: Unserved = None

    @property
    def wants_logprobs(self) -> bool:
        """Whether the text's tokens come with their log-probabilities."""
        return LOGPROBS in (self.include or ())

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.top_logprobs and not self.wants_logprobs:
            raise ValueError(f"top_logprobs is {self.top_logprobs}, but include doesn't hold {LOGPROBS!r}")
        if self.wants_running_usage:
            raise ValueError("stream_options.continuous_usage_stats isn't supported here: the usage comes at the end")
        return self
