"""Fields that completions and chat share, with OpenAI's names, and vLLM's for what OpenAI has not.

A field that nobody knows is refused with the nearest known name; those that OpenAI's clients send and that change
nothing here are accepted and ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, field_validator, model_validator

from ...configs.sampling import RequestOutputKind, SamplingParams
from ...configs.structured import StructuredOutputsParams
from ...errors import RequestError

T = TypeVar("T")
# Checking holds up everything else in the process: a list is given up at its first wrong item.
Items = Annotated[list[T], Field(fail_fast=True, max_length=1 << 16)]
Ids = Annotated[list[int], Field(fail_fast=True, max_length=1 << 21)]  # beyond any model's length

_INT64 = 1 << 63
_MAX_NAMED = 1024  # token ids that end a request, or have a bias: they go into a plan, to every stage
_SAMPLED = {  # fields that are sampling parameters of the same name
    *("n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"),
}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"holds a {type(value).__name__} by the name {name[:64]!r}; it takes plain values")
    return values


def _nothing(value: object) -> None:
    if value is not None:
        raise ValueError("it isn't supported; leave it out, or null")


Unserved = Annotated[Any, AfterValidator(_nothing), WithJsonSchema({"type": "null"})]  # what clients send empty
_PLAIN_SCHEMA = {"type": "object", "additionalProperties": {"type": ["boolean", "number", "string", "null"]}}
PlainValues = Annotated[dict[str, Any], AfterValidator(_plain), WithJsonSchema(_PLAIN_SCHEMA)]


class StreamOptions(BaseModel):
    """What a stream carries beside the answer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = Field(False, description="one more chunk at the end, with the tokens' numbers")
    continuous_usage_stats: bool | None = Field(False, description="the numbers with every chunk")
    include_obfuscation: bool | None = Field(None, description="accepted and ignored")


class StructuredOutputs(BaseModel):
    """vLLM's form of a constraint; one of the fields."""

    model_config = ConfigDict(extra="forbid", strict=True)

    json_schema: dict[str, Any] | str | bool | None = Field(None, alias="json", description="a JSON schema")
    json_object: bool | None = Field(None, description="any JSON object")
    regex: str | None = None
    choice: Items[str] | None = None
    grammar: str | None = Field(None, description="a grammar in EBNF")
    structural_tag: str | None = Field(None, description="schemas between tags, as xgrammar writes them")

    def params(self) -> StructuredOutputsParams:
        """As a sampling parameter; raises RequestError unless exactly one is given."""
        given = self.model_dump(by_alias=True, exclude_none=True)
        return constraint("structured_outputs", **given)


class SamplingFields(BaseModel):
    """What a request may say about sampling, ending and streaming."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    model: str | None = Field(None, description="the served model's name; none means the one that is served")
    n: int | None = Field(None, description="completions of a prompt", ge=1)
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=_INT64, description="0 or -1: all tokens")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=1e6)
    logit_bias: dict[str, float] | None = Field(
        None, max_length=_MAX_NAMED, description="token id: what is added to its logit, -100 to 100"
    )
    seed: int | None = Field(None, ge=-_INT64, lt=_INT64)

    max_tokens: int | None = Field(None, ge=0, lt=_INT64, description="most tokens to generate")
    min_tokens: int | None = Field(None, ge=0, lt=_INT64)
    stop: str | Items[str] | None = None
    stop_token_ids: Annotated[list[int], Field(fail_fast=True, max_length=_MAX_NAMED)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: StructuredOutputs | None = None

    prompt_token_ids: Ids | None = Field(None, description="the prompt as token ids, instead of text")
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = Field(False, description="token ids beside the text")
    request_id: str | None = Field(None, max_length=256)

    user: str | None = Field(None, description="accepted and ignored, as are the next seven")
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, str] | None = None

    @field_validator("stop_token_ids", "prompt_token_ids")
    @classmethod
    def _ids_are_ids(cls, ids: list[int] | None) -> list[int] | None:
        for token_id in ids or ():
            if not 0 <= token_id < 1 << 31:
                raise ValueError(f"holds {token_id}, which is no token id")
        return ids

    @field_validator("logit_bias")
    @classmethod
    def _bias_is_of_ids(cls, logit_bias: dict[str, float] | None) -> dict[str, float] | None:
        for key in logit_bias or ():
            if not (key.isascii() and key.isdigit() and len(key) <= 10):
                raise ValueError(f"has the key {key[:32]!r}, which is no token id")
        return logit_bias

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream=true")
        return self

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_running_usage(self) -> bool:
        """Whether every chunk carries them."""
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def sampling_params(self, defaults: SamplingParams, **values: object) -> SamplingParams:
        """The request's parameters over the model's defaults; `values` are those whose names differ."""
        given = {name: value for name in _SAMPLED if (value := getattr(self, name)) is not None}
        if self.logit_bias:
            given["logit_bias"] = {int(token_id): bias for token_id, bias in self.logit_bias.items()}
        if self.structured_outputs is not None:
            given["structured_outputs"] = self.structured_outputs.params()
        kept = {name: getattr(defaults, name) for name in defaults.model_fields_set}
        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        return SamplingParams(**(kept | given | values | {"output_kind": kind}))


def constraint(field: str, **given: Any) -> StructuredOutputsParams:
    """What a field of the request constrains the text to; raises RequestError that names the field."""
    try:
        return StructuredOutputsParams(**given)
    except RequestError as error:
        raise RequestError(error.reason.replace("structured_outputs", field, 1), field) from None


def only_one(**fields: object) -> str:
    """The name of the one field that is given; raises RequestError for none or several."""
    given = [name for name, value in fields.items() if value is not None]
    if len(given) != 1:
        raise RequestError(f"give one of {', '.join(fields)}; given are: {', '.join(given) or 'none'}")
    return given[0]
