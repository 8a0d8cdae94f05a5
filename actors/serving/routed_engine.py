"""Several engines as one: every request gets an engine from Serve's router, which it holds until it ends.

The router's answer is a name. Requests and tokens then go between this process and that engine's scheduler directly,
as with any handle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from ...configs.sampling import SamplingParams
from ...errors import EngineDeadError, PenstockError
from ..answer import Answer
from ..async_engine import AsyncEngine
from ..llm import connect
from ..prompts import Limits, Prompt
from ..ray_errors import first_line
from ..tokenizer import Tokenizer
from .shared import Shared

log = logging.getLogger(__name__)

PREFIX_CHUNK_TOKENS = 32
MAX_PREFIX_CHUNKS = 64
_ROUTE_TIMEOUT_S = 30.0
_HEALTH_TIMEOUT_S = 5.0
_RETRY_S = 0.2


class RoutedEngine:
    """What the endpoints need of an engine, over all of a deployment's; made by `connect`."""

    def __init__(self, engines: Any, first: AsyncEngine) -> None:
        self._engines = engines  # a DeploymentHandle whose calls stream
        self._model = first  # its limits and its tokenizer are every engine's
        self._connected = {first.name: first}
        self._connecting: dict[str, Shared[AsyncEngine]] = {}

    @classmethod
    async def connect(cls, engines: Any) -> RoutedEngine:
        """Asks for an engine, waiting until there is one."""
        streaming = engines.options(stream=True)
        held = streaming.hold.remote([])
        try:
            first = await asyncio.to_thread(connect, await anext(held))
        finally:
            held.cancel()
        return cls(streaming, first)

    @property
    def limits(self) -> Limits:
        """What a prompt is held against."""
        return self._model.limits

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer."""
        return self._model.tokenizer

    @property
    def default_sampling_params(self) -> SamplingParams:
        """What the model's folder recommends."""
        return self._model.default_sampling_params

    def prepare(
        self, prompts: Sequence[Prompt], sampling_params: SamplingParams | None = None, add_special_tokens: bool = True
    ) -> list[Answer]:
        """The prompts as answers to come, for any of the engines."""
        return self._model.prepare(prompts, sampling_params, add_special_tokens)

    async def run(self, answers: Sequence[Answer]) -> AsyncGenerator[list[Answer]]:
        """As an engine's `run`, on the one that the router chooses."""
        async with self._held(answers) as engine, aclosing(engine.run(answers)) as steps:
            async for moved in steps:
                yield moved

    async def check_health(self) -> None:
        """Raises EngineDeadError unless some engine can be had."""
        async with self._held([], _HEALTH_TIMEOUT_S):
            pass

    @asynccontextmanager
    async def _held(self, answers: Sequence[Answer], timeout_s: float = _ROUTE_TIMEOUT_S) -> AsyncIterator[AsyncEngine]:
        """An engine, held; until Serve has noticed that one is dead its router may choose it, and is asked again."""
        prefix = prefix_of(answers[0].prompt.token_ids) if answers else []
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            held = self._engines.hold.remote(prefix)
            try:
                async with asyncio.timeout_at(deadline):
                    engine = await self._engine(await anext(held))
                break
            except TimeoutError:
                held.cancel()
                raise EngineDeadError(f"no engine could be had within {timeout_s:g} s") from None
            except (PenstockError, RayError, RayServeException) as error:
                held.cancel()
                log.warning("an engine can't be had, another is asked for: %s", first_line(error))
                await asyncio.sleep(_RETRY_S)
            except BaseException:
                held.cancel()
                raise
        try:
            yield engine
        finally:
            held.cancel()

    async def _engine(self, name: str) -> AsyncEngine:
        while (gone := self._take_dead()) is not None:  # one by one: who asks may leave in between
            await asyncio.to_thread(gone.close)
        if (engine := self._connected.get(name)) is not None:
            return engine
        return await self._connecting.setdefault(name, Shared(partial(self._connect, name)))()

    def _take_dead(self) -> AsyncEngine | None:
        name = next((name for name, engine in self._connected.items() if engine.is_dead), None)
        return None if name is None else self._connected.pop(name)

    async def _connect(self, name: str) -> AsyncEngine:
        """Goes on when nobody waits any more, so that a connection that comes late is kept, and not lost."""
        try:
            self._connected[name] = await asyncio.to_thread(connect, name)
        finally:
            del self._connecting[name]
        return self._connected[name]


def prefix_of(token_ids: Sequence[int]) -> list[bytes]:
    """A hash for each leading chunk of the prompt, each over all before it too: equal hashes mean equal beginnings."""
    size = PREFIX_CHUNK_TOKENS
    hashes, last = list[bytes](), b""
    for end in range(size, min(len(token_ids), size * MAX_PREFIX_CHUNKS) + 1, size):
        chunk = np.asarray(token_ids[end - size : end], np.int32).tobytes()
        last = blake2b(last + chunk, digest_size=8).digest()
        hashes.append(last)
    return hashes
