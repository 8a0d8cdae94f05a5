"""One replica: an engine of its own and the HTTP API over it, in one process beside the engine's.

As a Ray Serve deployment it takes requests from Serve's proxy; with ingress `direct` it also listens itself, which
spares every token the way through the proxy. It is ready when its engine answers, and healthy while that does.
"""

from __future__ import annotations

import asyncio
import logging
import time

from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...configs.engine import EngineConfig
from ...configs.serving import ServeConfig
from ..async_engine import AsyncEngine
from ..engine import EngineHandle, start_engine
from ..grammar_gate import GrammarGate
from ..logs import speak
from ..opening import open_desk
from ..tokenizer import load_tokenizer
from .api import Api
from .auth import load_keys
from .errors import ApiError
from .http_server import HttpServer
from .metric_merge import merge_expositions
from .metrics import ServingMetrics
from .service import Service

log = logging.getLogger(__name__)

_HEALTH_S = 0.5  # how long an answer about the engine's health holds
_OBSERVE_S = 5.0  # between looks at the engine's figures, for Ray's exporters
_DRAIN_POLL_S = 0.02
_GATHER_S = 10.0


class Replica:
    """The deployment's class. Everything runs on its replica's event loop."""

    async def __init__(self, config: EngineConfig, serving: ServeConfig) -> None:  # type: ignore[misc]  # Serve awaits it
        speak()
        context = serve.get_replica_context()
        self._serving = serving
        self._deployment = (context.deployment, context.app_name)
        name = f"{serving.app_name}-{context.replica_id.unique_id}"
        keys = load_keys(serving.api_key_file)
        tokenizer = asyncio.create_task(asyncio.to_thread(load_tokenizer, config))
        self._handle: EngineHandle = await asyncio.to_thread(start_engine, config.model_copy(update={"name": name}))
        engine = AsyncEngine(self._handle, open_desk(self._handle, await tokenizer))
        gate = GrammarGate(config.tokenizer_path, engine.limits.vocab_size, serving.grammar_timeout_s)
        metrics = ServingMetrics(context.replica_id.unique_id, serving.served_model_name or "")
        self._service = Service(engine, serving, metrics, gate.check)
        self._gate = gate
        self._app = Api(self._service, keys, self.check_health, self._all_expositions).app
        self._healthy_until_s = 0.0
        self._observing = asyncio.create_task(self._observe())
        self._server: HttpServer | None = None
        if serving.resolved_ingress == "direct":
            self._server = HttpServer(self._app, serving.host, serving.port, serving.body_timeout_s)
            await self._server.start()

    async def __call__(self, request: Request) -> Response:
        """A request that came through Serve's proxy."""
        return _Mounted(self._app)

    async def check_health(self) -> None:
        """Raises when the engine is dead or hung; Serve then starts another replica."""
        if self._service.admission.is_draining:
            raise ApiError(503, "the server is shutting down", kind="server_error", code="draining")
        if time.monotonic() >= self._healthy_until_s:
            await self._service.engine.health()
            self._healthy_until_s = time.monotonic() + _HEALTH_S

    async def exposition(self) -> str:
        """This replica's figures, as Prometheus reads them."""
        self._service.metrics.observe_engine(await self._service.engine.stats())
        return self._service.metrics.render()

    async def drain(self) -> None:
        """Takes nothing new, and lets what runs come to its end within the time for it."""
        self._service.admission.is_draining = True
        if self._server is not None:
            self._server.stop_listening()
        deadline = time.monotonic() + self._serving.drain_timeout_s
        while self._service.admission.num_requests and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)

    async def __del__(self) -> None:
        """Serve calls it before it ends the replica."""
        if not hasattr(self, "_service") or self._observing.cancelled():
            return
        await self.drain()
        self._observing.cancel()
        if self._server is not None:
            await self._server.stop(timeout_s=1.0)
        self._gate.close()
        self._service.engine.close()
        await asyncio.to_thread(self._handle.shutdown)

    async def _all_expositions(self) -> str:
        """The whole deployment's figures."""
        if not self._serving.is_replicated:
            return await self.exposition()
        response = serve.get_deployment_handle(*self._deployment).broadcast("exposition")
        return merge_expositions(await asyncio.to_thread(lambda: response.results(timeout_s=_GATHER_S)))

    async def _observe(self) -> None:
        while True:
            await asyncio.sleep(_OBSERVE_S)
            try:
                self._service.metrics.observe_engine(await self._service.engine.stats())
            except Exception as error:  # the health check tells of an engine that is gone
                log.warning("the engine's figures can't be had: %s", error)


class _Mounted(Response):
    """Hands the request on to the app, with the connection's own way back."""

    def __init__(self, app: object) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)  # type: ignore[operator]
