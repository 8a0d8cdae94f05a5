"""Runs structured requests through a pipeline in one process, over the demo model in float32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.configs.structured import StructuredOutputsParams
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import Sampling, ints
from penstock.scheduler.scheduler import Scheduler

from .fake_engine import DEMO, END


@dataclass
class Ran:
    """What came back."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, TokenEvent] = field(default_factory=dict)
    events: dict[str, list[TokenEvent]] = field(default_factory=dict)
    num_preemptions: int = 0
    num_steps: int = 0

    def text(self, request_id: str) -> str:
        """The demo's tokens below 256 are bytes; the others give no text."""
        return bytes(token for token in self.tokens[request_id] if token < 256).decode()

    def take(self, event: TokenEvent) -> None:
        tokens = self.tokens.setdefault(event.request_id, [])
        assert event.start == len(tokens), "a token is missing or came twice"
        tokens += event.token_ids.tolist()
        self.events.setdefault(event.request_id, []).append(event)
        if event.finish_reason:
            self.ends[event.request_id] = event


def grammar(**given: Any) -> str:
    return StructuredOutputsParams(**given).spec


def asked(name: str, max_tokens: int = 300, prompt: str = "", ignore_eos: bool = False, **sampling: Any) -> NewRequest:
    """A request; the prompt is text of one byte a token."""
    sampling.setdefault("seed", sum(name.encode()))
    stops = (*sampling.pop("stop_token_ids", ()),)
    if sampling.get("min_tokens"):
        sampling["stop_token_ids"] = (END, *stops)
    tokens = ints(list((prompt or f"Say {name}: ").encode()))
    return NewRequest(name, tokens, max_tokens, Sampling(**sampling), "", stops, (END,), ignore_eos)


def run(
    requests: list[NewRequest],
    stages: int = 1,
    ranks: int = 1,
    num_blocks: int = 2048,
    aborts: Mapping[int, str] | None = None,
    async_scheduling: bool = True,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Ran:
    """Serves them all, arriving together; `aborts` says after which step which request is aborted."""
    config = EngineConfig(
        model=DEMO,
        pipeline_parallel_size=stages,
        tensor_parallel_size=ranks,
        dtype="float32",
        device=device,
        block_size=16,
        max_num_seqs=64,
        max_num_batched_tokens=256,
        async_scheduling=async_scheduling,
    )
    model_config = read_model_config(DEMO)
    scheduler = Scheduler(scheduler_config(config, model_config, num_blocks))
    driver = start_in_process(config, model_config, scheduler, num_blocks)
    ran = Ran()
    for each in requests:
        scheduler.add_request(replace(each))
    try:
        while scheduler.num_unfinished or scheduler.num_unretired:
            driver.publish()
            driver.retire()
            if aborts and driver.num_steps in aborts:
                scheduler.abort("", aborts[driver.num_steps])
            for event in scheduler.take_events():
                ran.take(event)
        scheduler.check()
    finally:
        driver.close()
    ran.num_preemptions = scheduler.stats().num_preemptions
    ran.num_steps = driver.num_steps
    return ran
