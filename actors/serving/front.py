"""The HTTP side of a deployment: the API over an engine, on a port of its own or behind Serve's proxy."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ...configs.engine import EngineConfig
from ...configs.serving import ServeConfig
from ..grammar_gate import GrammarGate
from .api import Api, Health, Metrics
from .auth import Keys
from .chat_parser import chat_parser
from .errors import ApiError
from .http_server import HttpServer
from .metrics import ServingMetrics
from .service import Engine, Service
from .shared import Shared

_DRAIN_POLL_S = 0.02


class Front:
    """Everything between a connection and an engine. For one event loop."""

    def __init__(
        self,
        engine: Engine,
        config: EngineConfig,
        serving: ServeConfig,
        metrics: ServingMetrics,
        *,
        keys: Keys,
        health: Health,
        expositions: Metrics,
    ) -> None:
        chat_parser(serving.tool_call_parser, serving.reasoning_parser, prompt="")  # raises for a name that is none
        self._serving = serving
        self._health = Shared(health)  # anybody may ask, and each answer is a call to the engine
        self._gate = GrammarGate(config.tokenizer_path, engine.limits.vocab_size, serving.grammar_timeout_s)
        self._service = Service(engine, serving, metrics, self._gate.check)
        self._app = Api(self._service, keys, self.check_health, Shared(expositions)).app
        self._server: HttpServer | None = None

    async def start(self) -> None:
        """Listens, where the settings say so; raises ConfigError where it can't."""
        serving = self._serving
        if serving.ingress == "direct":
            self._server = HttpServer(self._app, serving.host, serving.port, serving.body_timeout_s)
            await self._server.start()

    def response(self) -> Response:
        """The answer to a request that came through Serve's proxy."""
        return _Mounted(self._app)

    async def check_health(self) -> None:
        """Raises while it drains, and when the engine is dead or hung."""
        if self._service.admission.is_draining:
            raise ApiError(503, "the server is shutting down", kind="server_error", code="draining")
        await self._health()

    async def end(self) -> None:
        """Takes nothing new, lets what runs come to its end within the time for it, and closes."""
        self._service.admission.is_draining = True
        if self._server is not None:
            self._server.stop_listening()
        deadline = time.monotonic() + self._serving.drain_timeout_s
        while self._service.admission.num_requests and time.monotonic() < deadline:
            await asyncio.sleep(_DRAIN_POLL_S)
        if self._server is not None:
            await self._server.stop(timeout_s=1.0)
        self._gate.close()


class _Mounted(Response):
    """Hands the request on to the app, with the connection's own way back."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
