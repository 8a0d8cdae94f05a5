"""The server's settings: where it listens, how many replicas it has, and how much a client may ask for.

They may stand in the same YAML file as the engine's; no name means something in both.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..errors import ConfigError
from .engine import NAME_PATTERN
from .problems import explain
from .sampling import MAX_LOGPROBS

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/*A-Z]+")  # all, or as browsers send it


class ServeConfig(BaseModel):
    """Everything that may be said about a server beside its engine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 for all", min_length=1)
    port: int = Field(8000, description="port to listen on", ge=1, le=65535)
    served_model_name: str | None = Field(
        None, description="the model's name in the API; None: the folder's name", min_length=1
    )
    app_name: str = Field("penstock", description="the application's name in Ray Serve", pattern=NAME_PATTERN)
    ingress: Literal["direct", "proxy"] = Field(
        "direct", description="who takes connections: the server itself on its port, or Serve's proxies on every node"
    )

    num_replicas: int = Field(1, description="engines that share the load, each with its own GPUs", ge=1, le=1024)
    max_replicas: int | None = Field(
        None, description="with more than num_replicas: grow up to so many by requests in flight", ge=1, le=1024
    )
    target_ongoing_requests: int = Field(64, description="requests in flight of a replica that growth aims at", ge=1)
    request_router: Literal["pow_2", "prefix_aware"] = Field(
        "pow_2", description="a request goes to the emptier of two engines, or where its prompt's beginning has been"
    )

    api_key_file: str | None = Field(
        None, description="a file with an API key on each line; PENSTOCK_API_KEY names one more"
    )
    allowed_origins: list[str] = Field(
        [], description="origins whose pages may ask from a browser, as `https://chat.example.com`; `*` for all"
    )
    max_open_requests: int = Field(1024, description="requests for each engine, running and queued; beyond: 429", ge=1)
    max_open_tokens: int = Field(
        32_000_000, description="tokens held for them, prompts and outputs so far; beyond: 429", ge=1
    )
    max_body_bytes: int = Field(4 << 20, description="most bytes of a request's body", ge=1024)
    body_timeout_s: float = Field(30.0, description="seconds that a request's head, and its body, may take", gt=0)
    max_prompts: int = Field(256, description="most prompts of one completion request", ge=1)
    max_n: int = Field(64, description="most completions of a prompt", ge=1)
    max_logprobs: int = Field(20, description="most alternatives to report for a token", ge=0, le=MAX_LOGPROBS)
    max_stop_strings: int = Field(16, description="most stop strings of a request", ge=0)
    max_stop_chars: int = Field(256, description="most characters of a stop string", ge=1)
    grammar_timeout_s: float = Field(5.0, description="seconds that compiling a grammar may take", gt=0)

    tool_call_parser: str | None = Field("hermes", description="how the model writes tool calls; None: not at all")
    reasoning_parser: str | None = Field(None, description="how it marks its reasoning, for example `qwen3`")
    drain_timeout_s: float = Field(12.0, description="seconds that running requests get when the server ends", ge=0)

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(explain(error, type(self).model_fields)) from None

    @field_validator("allowed_origins")
    @classmethod
    def _origins_are_origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):  # no browser would ever send it
                raise ValueError(f"{origin!r} is no origin, such as https://chat.example.com:8443, without a path")
        return origins

    @model_validator(mode="after")
    def _settings_agree(self) -> ServeConfig:
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is below num_replicas {self.num_replicas}")
        return self

    @property
    def max_engines(self) -> int:
        """Engines that there are, or may come to be."""
        return self.max_replicas or self.num_replicas

    @property
    def is_replicated(self) -> bool:
        """Whether they are, or may come to be, more than one."""
        return self.max_engines > 1
