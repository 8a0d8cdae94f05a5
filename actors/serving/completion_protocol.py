"""`/v1/completions`: what comes in and what goes out, in OpenAI's words."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from .fields import Ids, Items, SamplingFields


class CompletionRequest(SamplingFields):
    """Text, token ids, or several of either, to go on from."""

    prompt: str | Items[str] | Ids | Items[Ids] | None = None
    logprobs: int | None = Field(None, ge=0, description="most likely alternatives to report for each token")
    echo: bool | None = Field(False, description="put the prompt before each completion")
    best_of: int | None = Field(None, description="refused unless it equals n: nothing is chosen among more")
    suffix: str | None = Field(None, description="refused: text is not filled in between")

    @model_validator(mode="after")
    def _nothing_is_pretended(self) -> Self:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError(f"best_of is {self.best_of}; it isn't supported: use n and choose yourself")
        if self.suffix:
            raise ValueError("suffix isn't supported: text is generated behind the prompt only")
        return self


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int = 0  # found in the prefix cache


class Usage(BaseModel):
    """How many tokens a request took."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokensDetails | None = None


class CompletionLogprobs(BaseModel):
    """Columns with an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]  # the prompt's first token has none
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]  # where each token's text begins


class CompletionChoice(BaseModel):
    """One completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length", "abort"] | None = None
    stop_reason: int | str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class CompletionResponse(BaseModel):
    """All completions of a request."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
