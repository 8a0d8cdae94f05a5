"""An engine whose every token is known beforehand, for tests of what a client makes of it. No Ray, no threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penstock.model.demo
from penstock.actors import llm as llm_module
from penstock.actors.frontdesk import Frontdesk
from penstock.actors.opening import open_desk
from penstock.actors.prompts import Limits
from penstock.actors.tokenizer import Tokenizer
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import ModelConfig, read_model_config
from penstock.scheduler.messages import FinishReason, NewRequest, TokenEvent
from penstock.scheduler.plan import Logprobs, ints

DEMO = str(Path(penstock.model.demo.__file__).parent)
END = 257  # ends a sequence of the demo model, whose other tokens are bytes

OnEvent = Callable[[TokenEvent], None]
Script = Callable[[NewRequest], Iterable[TokenEvent]]


def spoken(request: NewRequest, *pieces: str | bytes, reason: FinishReason | None = "stop") -> list[TokenEvent]:
    """An event for each piece; the last one ends the request, with END behind its text when it stops."""
    events, start = list[TokenEvent](), 0
    for at, piece in enumerate(pieces):
        ids = list(piece.encode() if isinstance(piece, str) else piece)
        last = reason if at == len(pieces) - 1 else None
        ids += [END] if last == "stop" else []
        events.append(TokenEvent("", request.request_id, start, ints(ids), finish_reason=last))
        start += len(ids)
    return events


def scored(token_ids: list[int], start: int = 0) -> Logprobs:
    """Logprobs of these tokens: each at -1 and second to token 65, which has -0.5."""
    count = len(token_ids)
    return Logprobs(
        row=0,
        start=start,
        token_ids=ints(token_ids),
        values=np.full(count, -1.0, np.float32),
        ranks=ints([2] * count),
        top_ids=ints([[65]] * count).reshape(count, 1),
        top_values=np.full((count, 1), -0.5, np.float32),
    )


def echo(request: NewRequest) -> list[TokenEvent]:
    """Says the prompt again, a token an event."""
    prompt = bytes(token_id for token_id in request.prompt_token_ids.tolist() if token_id < 256)
    return spoken(request, *([prompt[at : at + 1] for at in range(len(prompt))] or [b""]))


def scored_echo(request: NewRequest) -> list[TokenEvent]:
    """The echo of the prompt, both scored as far as the request asks."""
    events = echo(request)
    for event in events:
        event.logprobs = [scored(event.token_ids.tolist())] if request.sampling.num_logprobs >= 0 else []
    if request.sampling.num_prompt_logprobs >= 0:
        events[0].prompt_logprobs = [scored(request.prompt_token_ids.tolist()[1:], start=1)]
    return events


@dataclass
class FakeEngine:
    """A handle and its only client. Events come while a request is submitted, or later through `say`."""

    script: Script = echo
    config: EngineConfig = field(default_factory=lambda: EngineConfig(model=DEMO))
    model_config: ModelConfig = field(default_factory=lambda: read_model_config(DEMO))
    limits: Limits = field(default_factory=lambda: Limits(vocab_size=264, max_model_len=512, cache_tokens=500))
    name: str = "fake"
    is_dead: bool = False
    requests: list[NewRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    num_closed: int = 0
    num_shutdowns: int = 0
    listeners: dict[str, OnEvent] = field(default_factory=dict)
    num_said: dict[str, int] = field(default_factory=dict)

    def client(self) -> FakeEngine:
        return self

    def submit(self, request: NewRequest, on_event: OnEvent) -> None:
        self.requests.append(request)
        self.listeners[request.request_id] = on_event
        for event in self.script(request):
            self.say(event)

    def say(self, event: TokenEvent) -> None:
        self.num_said[event.request_id] = event.start + len(event.token_ids)
        self.listeners[event.request_id](event)

    def abort(self, request_id: str) -> None:
        if request_id not in self.listeners:
            return
        self.aborted.append(request_id)
        self.say(TokenEvent("", request_id, self.num_said.get(request_id, 0), finish_reason="abort"))

    def close(self) -> None:
        self.num_closed += 1

    def stats(self) -> dict[str, Any]:
        return {"stages": [{"busy_share": 0.9}, {"busy_share": 0.5}]}

    def shutdown(self) -> None:
        self.num_shutdowns += 1

    def leave(self) -> None:
        self.shutdown()


def desk_of(engine: FakeEngine, tokenizer: bool = True) -> Frontdesk:
    return open_desk(engine, Tokenizer(DEMO) if tokenizer else None)  # type: ignore[arg-type]


def started(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """The engine that whatever starts one gets."""
    fake = FakeEngine()

    def start(config: EngineConfig) -> FakeEngine:
        fake.config = config
        return fake

    monkeypatch.setattr(llm_module, "start_engine", start)
    return fake
