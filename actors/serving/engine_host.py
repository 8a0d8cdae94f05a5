"""A process that owns an engine: starts it, tells of its health and figures, ends it."""

from __future__ import annotations

import asyncio
import logging
import time

from ...configs.engine import EngineConfig
from ...errors import EngineDeadError
from ..async_engine import AsyncEngine
from ..engine import EngineHandle, start_engine
from ..opening import open_desk
from ..tokenizer import load_tokenizer
from .metrics import ServingMetrics
from .shared import Shared

log = logging.getLogger(__name__)

_HEALTH_S = 0.5  # how long an answer about the engine's health holds
_STATS_TIMEOUT_S = 3.0
_OBSERVE_S = 5.0  # between looks at the engine's figures, for Ray's exporters


class EngineHost:
    """Made by `start`, on the event loop that it then belongs to."""

    def __init__(self, handle: EngineHandle, engine: AsyncEngine, metrics: ServingMetrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self._handle = handle
        self._healthy_until_s = 0.0
        self._failure: str | None = None  # at the last look
        self._rejoin = Shared(self._joined_again)  # Serve and clients may look at the same time
        self._observing = asyncio.create_task(self._observe_now_and_then())

    @classmethod
    async def start(cls, config: EngineConfig, metrics: ServingMetrics) -> EngineHost:
        """Starts the engine and waits until it serves; raises what `start_engine` and the tokenizer raise."""
        tokenizer = asyncio.create_task(asyncio.to_thread(load_tokenizer, config))
        handle = await asyncio.to_thread(start_engine, config)
        try:
            return cls(handle, AsyncEngine(handle, open_desk(handle, await tokenizer)), metrics)
        except BaseException:
            handle.shutdown()
            raise

    async def check_health(self) -> None:
        """Raises EngineDeadError when the engine is dead or hung, or can't be joined again after one side's pause."""
        if time.monotonic() >= self._healthy_until_s or self.engine.is_dead:
            try:
                await self.engine.health()
                if self.engine.is_dead:
                    await self._rejoin()
            except EngineDeadError as error:
                self._failure = str(error)
                raise
            self._healthy_until_s, self._failure = time.monotonic() + _HEALTH_S, None

    def check_last_look(self) -> None:
        """Raises EngineDeadError when the engine is known to be dead, without asking it."""
        if self._failure is not None or self.engine.is_dead:
            raise EngineDeadError(self._failure or f"engine {self.engine.name!r} has ended")

    async def exposition(self) -> str:
        """The figures of this moment, as Prometheus reads them; the engine's last ones when it doesn't answer."""
        await self._observe()
        return self.metrics.render()

    async def end(self) -> None:
        """Ends the engine; requests that run are answered with that."""
        self._observing.cancel()
        self.engine.close()
        await asyncio.to_thread(self._handle.shutdown)

    async def _joined_again(self) -> None:
        log.warning("engine %r lives and this process had lost it: joining it again", self.engine.name)
        await asyncio.to_thread(self.engine.rejoin)

    async def _observe_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_OBSERVE_S)
            await self._observe()

    async def _observe(self) -> None:
        try:
            self.metrics.observe_engine(await asyncio.wait_for(self.engine.stats(), _STATS_TIMEOUT_S))
        except (EngineDeadError, TimeoutError) as error:  # the health check tells of an engine that is gone
            log.warning("the engine's figures can't be had: %s", error)
