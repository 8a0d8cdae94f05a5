"""Engines of four ranks over two GPUs, each shared by two ranks: FOLDER of a model, GPUS as `CUDA_VISIBLE_DEVICES`
names one for each rank, and settings as JSON, one engine after the other.

NCCL takes no two ranks of a communicator on one GPU, so ranks that talk must be on different ones. Prints a line of
JSON for each engine: the greedy tokens of all prompts, then what a random load gave, and its preemptions.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from typing import Any

import ray

import penstock
from penstock.actors.async_engine import AsyncEngine
from penstock.actors.llm import LLM
from penstock.errors import EngineDeadError

from .prompts import LENGTH, NUM_DIFFERENT, PROMPTS, SETTINGS, greedy

NUM_RANKS = 4
NUM_ATTEMPTS = 4
NUM_REQUESTS = 200
NUM_BLOCKS = 32  # sequences grow to as many as 64 tokens each: 32 of them don't fit


async def ask(engine: AsyncEngine, rng: random.Random) -> tuple[int, int, list[int]]:
    """Which prompt, how many tokens were asked for, and those that came: one reader in five leaves after some."""
    which, count = rng.randrange(NUM_DIFFERENT), rng.randint(1, LENGTH)
    leaves_after = rng.randint(1, count) if rng.random() < 0.2 else None
    tokens: list[int] = []
    async for output in engine.generate(PROMPTS[which], greedy(count)):
        tokens = list(output.outputs[0].token_ids)
        if leaves_after is not None and len(tokens) >= leaves_after:
            return which, len(tokens), tokens
    return which, count, tokens


async def load(name: str) -> list[tuple[int, int, list[int]]]:
    """Bursts of requests, more at once than the cache holds."""
    engine, rng, asked = penstock.connect(name), random.Random(3), []
    for _ in range(NUM_REQUESTS):
        asked.append(asyncio.ensure_future(ask(engine, rng)))
        if rng.random() < 0.02:
            await asked[rng.randrange(len(asked))]
    answers = await asyncio.gather(*asked)
    engine.close()
    return answers


def start(folder: str, settings: dict[str, Any]) -> LLM:
    """Ray hands its GPUs out as workers come to ask: where two that talk got one GPU, all ask again."""
    for attempt in range(NUM_ATTEMPTS):
        try:
            return LLM(folder, skip_tokenizer_init=True, num_kv_blocks=NUM_BLOCKS, **SETTINGS, **settings)
        except EngineDeadError as error:
            if "Duplicate GPU" not in str(error) or attempt == NUM_ATTEMPTS - 1:
                raise
    raise AssertionError


def main(folder: str, gpus: str, *engines: str) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus  # Ray takes its GPU i to be the i-th of them
    ray.init(
        "local",
        num_cpus=16,
        num_gpus=NUM_RANKS,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
    )
    for settings in map(json.loads, engines):
        with start(folder, settings) as llm:
            plain = [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, greedy(LENGTH))]
            answers = asyncio.run(load(llm.name))
            print(json.dumps([plain, answers, llm.stats()["scheduler"]["num_preemptions"]]), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
