"""The deployments' classes: a replica that is engine and HTTP in one, or engines behind a front of their own.

A replica is ready when its engine answers, and healthy while it does; Serve replaces one that isn't. With several
engines the front asks Serve's router for one of them and holds it while a request runs, so that Serve counts, balances
and drains by requests in flight; tokens go from the engine straight to the front all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.requests import Request
from starlette.responses import Response

from ...configs.engine import EngineConfig
from ...configs.serving import ServeConfig
from ..logs import speak
from ..ray_errors import first_line
from .auth import Keys
from .engine_host import EngineHost
from .front import Front
from .metric_merge import merge_expositions
from .metrics import ServingMetrics
from .routed_engine import RoutedEngine

log = logging.getLogger(__name__)

_GATHER_S = 10.0


class Replica:
    """One engine and the API over it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, config: EngineConfig, serving: ServeConfig, keys: Keys
    ) -> None:
        metrics = _begin(serving)
        self._host = await EngineHost.start(_named(config, serving), metrics)
        self._front = Front(
            self._host.engine,
            config,
            serving,
            metrics,
            keys=keys,
            health=self._host.check_health,
            expositions=self._host.exposition,
        )
        await self._front.start()
        self._has_ended = False

    async def __call__(self, request: Request) -> Response:
        """A request that came through Serve's proxy."""
        return self._front.response()

    async def check_health(self) -> None:
        """Raises when the engine is dead or hung."""
        await self._host.check_health()

    async def __del__(self) -> None:
        """Serve calls it before it ends the replica."""
        if not getattr(self, "_has_ended", True):
            self._has_ended = True
            await self._front.end()
            await self._host.end()


class EngineReplica:
    """One of several engines."""

    async def __init__(self, config: EngineConfig, serving: ServeConfig) -> None:  # type: ignore[misc]
        self._host = await EngineHost.start(_named(config, serving), _begin(serving))
        self._has_ended = False

    async def hold(self, prefix: Sequence[bytes]) -> AsyncGenerator[str]:
        """The engine's name, for as long as the caller holds on; the router has read `prefix`.

        Raises EngineDeadError when the engine was dead at the last look.
        """
        self._host.check_last_look()
        yield self._host.engine.name
        await asyncio.Event().wait()

    async def check_health(self) -> None:
        """Raises when the engine is dead or hung."""
        await self._host.check_health()

    async def exposition(self) -> str:
        """This engine's figures, as Prometheus reads them."""
        return await self._host.exposition()

    async def __del__(self) -> None:
        if not getattr(self, "_has_ended", True):
            self._has_ended = True
            await self._host.end()


class FrontReplica:
    """The API over all engines of a deployment."""

    async def __init__(  # type: ignore[misc]
        self, config: EngineConfig, serving: ServeConfig, keys: Keys, engines: Any
    ) -> None:
        self._metrics = _begin(serving)
        self._engines = engines
        engine = await RoutedEngine.connect(engines)
        self._front = Front(
            engine,
            config,
            serving,
            self._metrics,
            keys=keys,
            health=engine.check_health,
            expositions=self._expositions,
        )
        await self._front.start()
        self._has_ended = False

    async def __call__(self, request: Request) -> Response:
        """A request that came through Serve's proxy."""
        return self._front.response()

    async def __del__(self) -> None:
        if not getattr(self, "_has_ended", True):
            self._has_ended = True
            await self._front.end()

    async def _expositions(self) -> str:
        """The whole deployment's figures: those of HTTP here, and every engine's."""
        response = self._engines.broadcast("exposition")
        try:
            texts = await asyncio.to_thread(lambda: response.results(timeout_s=_GATHER_S))
        except (RayError, RayServeException, TimeoutError) as error:
            log.warning("the engines' figures can't be had: %s", first_line(error))
            texts = []
        return merge_expositions([self._metrics.render(), *texts])


def _begin(serving: ServeConfig) -> ServingMetrics:
    speak()
    return ServingMetrics(serve.get_replica_context().replica_id.unique_id, serving.served_model_name or "")


def _named(config: EngineConfig, serving: ServeConfig) -> EngineConfig:
    """An engine's name in the cluster is its application's and its replica's; so its run's files are called too.

    An engine that takes a failed one's place would write over what shows the failure.
    """
    name = f"{serving.app_name}-{serve.get_replica_context().replica_id.unique_id}"
    given = {key: Path(path) for key in ("trace", "record") if (path := getattr(config, key))}
    files = {key: str(path.with_stem(f"{path.stem}-{name}")) for key, path in given.items()}
    return config.model_copy(update={"name": name, "detached": False, **files})
