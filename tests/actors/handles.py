"""Handles in a process of their own: connects some to an engine, streams through each, prints what came."""

from __future__ import annotations

import asyncio
import json
import sys

import penstock
from penstock import SamplingParams
from penstock.actors.async_engine import AsyncEngine

ENDLESS = SamplingParams(max_tokens=450, ignore_eos=True)


async def main(name: str, num_handles: str, max_tokens: str) -> None:
    """One stream of `max_tokens` for each handle; of 0: two endless ones, left open until the process is killed."""
    engines = [penstock.connect(name) for _ in range(int(num_handles))]
    if int(max_tokens) == 0:
        streams = [engine.generate("a", ENDLESS) for engine in engines for _ in range(2)]
        await asyncio.gather(*(anext(each) for each in streams))
        print("begun", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    params = SamplingParams(temperature=0, max_tokens=int(max_tokens), ignore_eos=True)
    print(json.dumps(await asyncio.gather(*(stream(engine, params) for engine in engines))), flush=True)
    print(json.dumps([(await engine.stats())["name"] for engine in engines]), flush=True)
    for engine in engines:
        engine.close()


async def stream(engine: AsyncEngine, params: SamplingParams) -> list[int]:
    """The tokens of a stream, checked to grow."""
    ids: list[int] = []
    async for output in engine.generate("Count from 1 to 300.", params):
        assert output.outputs[0].token_ids[: len(ids)] == ids
        ids = output.outputs[0].token_ids
    return ids


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
