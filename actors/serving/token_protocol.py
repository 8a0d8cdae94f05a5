"""`/tokenize` and `/detokenize`, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .chat_protocol import ChatMessage, Tool
from .fields import Ids, Items, PlainValues


class TokenizeRequest(BaseModel):
    """A text, or a conversation, to be counted and encoded."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[Items[ChatMessage], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=128)] | None = None
    add_special_tokens: bool | None = Field(None, description="default: true for a text, false for a conversation")
    add_generation_prompt: bool | None = True
    continue_final_message: bool | None = False
    chat_template_kwargs: PlainValues | None = None
    return_token_strs: bool | None = False


class TokenizeResponse(BaseModel):
    """The ids, their number and the most that a sequence may have."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    """Ids to become text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    tokens: Ids


class DetokenizeResponse(BaseModel):
    """The text, special tokens included."""

    prompt: str


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "penstock"
    root: str
    parent: str | None = None
    max_model_len: int
    permission: list[dict[str, Any]] = Field(default_factory=list)


class ModelList(BaseModel):
    """All of them: one."""

    object: str = "list"
    data: list[ModelCard]
