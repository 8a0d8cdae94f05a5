"""Thousands of short requests at random, all stages in this process: whatever is aborted, preempted or shared, each
request gets the tokens that it gets alone, and the scheduler's invariants hold after every step.

Requests are drawn from a few prompts whose answers are computed once: greedy ones by transformers, sampled ones by one
stage that serves them one after another. Bursts come while hundreds wait, and more run than the cache holds.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.actors.in_process import PipelineDriver, start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import GREEDY, Sampling, ints
from penstock.scheduler.policy import AdaptiveReserve
from penstock.scheduler.scheduler import Scheduler
from penstock.scheduler.stats import SchedulerStats

from ..actors.reference import Outcome, collect, expected_tokens
from ..model.tiny import VOCAB_SIZE, write_tiny_model

DEVICE = "cuda"
LENGTH = 56  # of the answers that requests are cut from: three blocks and more, so that decodes outgrow the cache
NUM_GREEDY = 24
SEEDED = [
    Sampling(temperature=1.3, seed=11),
    Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=12, presence_penalty=0.5),
    Sampling(temperature=1.0, min_p=0.02, seed=13, repetition_penalty=1.2, frequency_penalty=0.3),
    Sampling(temperature=2.0, top_p=0.8, seed=14, logit_bias=((9, 2.0),)),
    Sampling(repetition_penalty=1.3, frequency_penalty=0.2),  # greedy among penalised logits
]
MAX_WAITING = 300


@dataclass(frozen=True)
class Source:
    """What requests are cut from."""

    prompt: tuple[int, ...]
    sampling: Sampling
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """A request, and the tokens that it gets when it is alone."""

    request: NewRequest
    tokens: list[int]
    reason: str


def start(folder: Path, num_blocks: int, device: str, **settings: Any) -> PipelineDriver:
    common = {"dtype": "float32", "block_size": 16, "max_model_len": 128, "max_num_batched_tokens": 128}
    config = EngineConfig(model=str(folder), device=device, **(common | settings))
    model_config = read_model_config(folder)
    scheduler = Scheduler(scheduler_config(config, model_config, num_blocks))
    return start_in_process(config, model_config, scheduler, num_blocks)


def prompts(rng: random.Random, count: int) -> list[tuple[int, ...]]:
    """Of 1 to 44 tokens, mostly short; half of them begin alike, over one or two blocks."""
    shared = [rng.randrange(3, VOCAB_SIZE) for _ in range(32)]
    own = [[rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 12 if i % 8 else 44))] for i in range(count)]
    return [tuple((shared[: rng.choice([16, 32])] if i % 2 else []) + ids) for i, ids in enumerate(own)]


def sources(folder: Path, rng: random.Random, device: str) -> list[Source]:
    """Greedy prompts with transformers' answers, sampled ones with those of one stage that serves nobody else."""
    model = write_tiny_model(folder, "qwen3")
    greedy = prompts(rng, NUM_GREEDY)
    found = [Source(p, GREEDY, tuple(a)) for p, a in zip(greedy, expected_tokens(model, greedy, LENGTH), strict=True)]
    alone = start(folder, 8, device, max_num_seqs=1, enforce_eager=True, enable_prefix_caching=False)
    for sampling, prompt in zip(SEEDED * 3, prompts(rng, 3 * len(SEEDED)), strict=True):
        alone.scheduler.add_request(NewRequest("alone", ints(prompt), LENGTH, sampling, ignore_eos=True))
        answer = [int(token) for event in alone.run() for token in event.token_ids]
        found.append(Source(prompt, sampling, tuple(answer)))
    alone.close()
    return found


def ask(rng: random.Random, pool: Sequence[Source], name: str) -> Asked:
    """A request of random length over one of the sources; one in four also stops at a token."""
    source, count = rng.choice(pool), rng.randint(1, LENGTH)
    stops = (rng.choice(source.answer),) if rng.random() < 0.25 else ()
    tokens = list(source.answer[:count])
    ends = [i for i, token in enumerate(tokens) if token in stops]
    request = NewRequest(name, ints(source.prompt), count, source.sampling, stop_token_ids=stops, ignore_eos=True)
    return Asked(request, tokens[: ends[0] + 1] if ends else tokens, "stop" if ends else "length")


def play_at_random(
    driver: PipelineDriver, rng: random.Random, asked: dict[str, Asked], outcome: Outcome
) -> SchedulerStats:
    """Bursts and aborts between the steps, until every request has its end."""
    scheduler, coming = driver.scheduler, list(asked)[::-1]
    arrived: list[str] = []
    while coming or scheduler.num_unfinished or scheduler.num_unretired:
        if scheduler.num_unfinished < MAX_WAITING and rng.random() < 0.1:
            for _ in range(min(len(coming), rng.choice([1, 3, 150]))):
                arrived.append(coming.pop())
                scheduler.add_request(asked[arrived[-1]].request)
        if rng.random() < 0.06:
            arrived = [name for name in arrived if name not in outcome.reasons]
            begun = [name for name in arrived if name in outcome.tokens]
            for victims in (arrived, begun):
                scheduler.abort("", rng.choice(victims or ["unknown"]))
        driver.publish()
        driver.retire()
        scheduler.check()
        collect(driver, outcome)
    return scheduler.stats()


def assert_no_stale_token(asked: dict[str, Asked], outcome: Outcome) -> None:
    assert outcome.reasons.keys() == asked.keys(), "a request has no end"
    for name, each in asked.items():
        tokens, reason = outcome.tokens[name], outcome.reasons[name]
        if reason == "abort":
            assert tokens == each.tokens[: len(tokens)], f"{name}, aborted: {each}"
        else:
            assert (tokens, reason) == (each.tokens, each.reason), f"{name}: {each}"


def soak(folder: Path, pool: Sequence[Source], device: str, num_requests: int, **settings: Any) -> Counter[str]:
    """Runs the load; what it met."""
    rng = random.Random(6)
    asked = {f"r{i}": ask(rng, pool, f"r{i}") for i in range(num_requests)}
    driver, outcome = start(folder, device=device, **settings), Outcome()
    began_s = time.monotonic()
    stats = play_at_random(driver, rng, asked, outcome)
    took_s = time.monotonic() - began_s
    driver.close()
    print(f"\n{settings}: {stats.num_steps} steps in {took_s:.1f} s, {1000 * took_s / stats.num_steps:.2f} ms each")
    assert_no_stale_token(asked, outcome)
    assert stats.held_blocks == stats.running == stats.waiting == 0
    met = Counter(outcome.reasons.values())
    met["aborted midway"] = sum(bool(outcome.tokens[n]) for n, why in outcome.reasons.items() if why == "abort")
    met["preemptions"], met["prefix hit tokens"] = stats.num_preemptions, stats.num_prefix_hit_tokens
    print(dict(met))
    return met


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def pool(folder: Path) -> list[Source]:
    return sources(folder, random.Random(5), DEVICE)


@pytest.mark.parametrize(
    ("num_requests", "settings"),
    [
        (2000, {"pipeline_parallel_size": 3, "max_num_seqs": 48, "num_blocks": 72}),
        (500, {"pipeline_parallel_size": 1, "max_num_seqs": 24, "num_blocks": 32, "enforce_eager": True}),
    ],
    ids=["3 stages", "1 stage, eager"],
)
def test_no_request_of_a_random_load_gets_a_stale_token(
    folder: Path, pool: list[Source], num_requests: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AdaptiveReserve, "STEP", 0.0)  # preemptions go on, as if the engine learnt nothing from them
    met = soak(folder, pool, DEVICE, num_requests, **settings)
    assert met["prefix hit tokens"] > num_requests, met
    assert min(met[what] for what in ("stop", "length", "aborted midway", "preemptions")) >= num_requests // 100, met
