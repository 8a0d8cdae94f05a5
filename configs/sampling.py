"""How a request is sampled and when it ends, with vLLM's names and defaults.

A wrong value or an unknown name raises `RequestError` with the value and the limit, at construction and at assignment.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    field_validator,
    model_validator,
)

from ..errors import RequestError
from .problems import explain, field_of
from .structured import StructuredOutputsParams

MAX_LOGPROBS = 20
_MAX_N = 16384
_MAX_TOKEN_ID = (1 << 31) - 1  # ids travel as 32 bits; which ones a model has, the engine knows
_INT64 = 1 << 63  # every other integer is below: a message carries 64 bits


class RequestOutputKind(StrEnum):
    """What a stream yields: all text so far, only what is new, or one output at the end."""

    CUMULATIVE = "cumulative"
    DELTA = "delta"
    FINAL_ONLY = "final_only"


class SamplingParams(BaseModel):
    """One request's sampling settings."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    n: int = Field(1, description="completions of the prompt", ge=1, le=_MAX_N)
    presence_penalty: float = Field(0.0, description="subtracted from tokens that were generated", ge=-2, le=2)
    frequency_penalty: float = Field(0.0, description="subtracted once for each time generated", ge=-2, le=2)
    repetition_penalty: float = Field(1.0, description="divides tokens of prompt and output; above 1 deters", gt=0)
    temperature: float = Field(1.0, description="0 takes the most likely token", ge=0)
    top_p: float = Field(1.0, description="smallest set of tokens with this probability", gt=0, le=1)
    top_k: int = Field(0, description="most likely tokens to choose from; 0 or -1: all", ge=-1, lt=_INT64)
    min_p: float = Field(0.0, description="least probability, relative to the most likely token's", ge=0, le=1)
    seed: int | None = Field(
        None, description="fixes the random draws; None or -1: another one each time", ge=-_INT64, lt=_INT64
    )
    stop: str | list[str] | None = Field(None, description="texts that end the completion, and are left out")
    stop_token_ids: list[int] | None = Field(None, description="tokens that end the completion")
    ignore_eos: bool = Field(False, description="go on after the model's end of sequence")
    max_tokens: int | None = Field(
        16, description="most tokens to generate; None: up to max_model_len", ge=1, lt=_INT64
    )
    min_tokens: int = Field(0, description="tokens before eos or stop_token_ids may come", ge=0, lt=_INT64)
    logprobs: int | None = Field(
        None, description="most likely alternatives to report for each token", ge=0, le=MAX_LOGPROBS
    )
    prompt_logprobs: int | None = Field(None, description="the same for the prompt's tokens", ge=0, le=MAX_LOGPROBS)
    logit_bias: dict[int, float] | None = Field(None, description="added to the logits of token ids, -100 to 100")
    structured_outputs: InstanceOf[StructuredOutputsParams] | None = Field(
        None, description="what the text must be: a JSON schema, a regex, a choice, a grammar"
    )
    detokenize: bool = Field(True, description="give text beside the token ids")
    skip_special_tokens: bool = Field(True, description="leave special tokens out of the text")
    spaces_between_special_tokens: bool = Field(True, description="put spaces between special tokens in the text")
    include_stop_str_in_output: bool = Field(False, description="leave the stop string or token in the text")
    output_kind: RequestOutputKind = Field(RequestOutputKind.CUMULATIVE, description="what a stream yields")

    def __init__(self, /, **values: Any) -> None:  # so that a field called self is an unknown one
        if "structured_outputs" in values:  # before pydantic, whose complaint would repeat a whole schema
            values["structured_outputs"] = StructuredOutputsParams.from_any(values["structured_outputs"])
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "structured_outputs":
            value = StructuredOutputsParams.from_any(value)
        before = dict(self.__dict__)
        try:
            super().__setattr__(name, value)
        except ValidationError as error:
            self.__dict__.update(before)
            raise _refusal(error) from None

    @classmethod
    def from_any(cls, value: SamplingParams | Mapping[str, Any] | None) -> SamplingParams:
        """The value itself, or one made from a mapping of names (None: all defaults). Raises RequestError."""
        if isinstance(value, SamplingParams):
            return value
        if value is not None and not isinstance(value, Mapping):
            raise RequestError(f"sampling params are a {type(value).__name__}; they may be SamplingParams or a mapping")
        return cls(**{str(name): each for name, each in (value or {}).items()})

    @property
    def stop_strings(self) -> list[str]:
        """`stop` as a list."""
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    @field_validator("seed")
    @classmethod
    def _no_seed(cls, seed: int | None) -> int | None:
        return None if seed == -1 else seed

    @field_validator("stop")
    @classmethod
    def _stops_are_texts(cls, stop: str | list[str] | None) -> str | list[str] | None:
        if stop == "" or (isinstance(stop, list) and "" in stop):
            raise ValueError("a stop string must not be empty")
        return stop

    @field_validator("stop_token_ids")
    @classmethod
    def _stops_are_ids(cls, ids: list[int] | None) -> list[int] | None:
        for token_id in ids or ():
            _check_token_id(token_id)
        return ids

    @field_validator("logit_bias")
    @classmethod
    def _bias_is_bounded(cls, logit_bias: dict[int, float] | None) -> dict[int, float] | None:
        for token_id, bias in (logit_bias or {}).items():
            _check_token_id(token_id)
            if not -100 <= bias <= 100:
                raise ValueError(f"the bias {bias} of token {token_id} is not within -100 to 100")
        return logit_bias

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"min_tokens {self.min_tokens} is above max_tokens {self.max_tokens}")
        if self.stop and not self.detokenize:
            raise ValueError(f"stop is {self.stop!r}, but stop strings need detokenize=True")
        return self


def _check_token_id(token_id: int) -> None:
    if token_id < 0:
        raise ValueError(f"token id {token_id} is below 0")
    if token_id > _MAX_TOKEN_ID:
        raise ValueError(f"token id {token_id} is above {_MAX_TOKEN_ID}")


def _refusal(error: ValidationError) -> RequestError:
    return RequestError(explain(error, SamplingParams.model_fields, "sampling parameter"), field_of(error))
