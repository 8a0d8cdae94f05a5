"""The API over an engine whose every token is known beforehand: no Ray, no sockets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx

from penstock.actors.async_engine import AsyncEngine
from penstock.actors.serving.api import Api
from penstock.actors.serving.auth import Keys
from penstock.actors.serving.metrics import ServingMetrics
from penstock.actors.serving.service import Service
from penstock.configs.serving import ServeConfig

from ..fake_engine import FakeEngine, desk_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HELLO = [{"role": "user", "content": "hello"}]


@dataclass
class Served:
    """One replica without its server."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    config: ServeConfig = field(default_factory=lambda: ServeConfig(served_model_name="demo"))
    keys: Keys = field(default_factory=lambda: Keys([]))
    grammars: list[str] = field(default_factory=list)  # that were checked
    grammar_problem: str | None = None
    has_tokenizer: bool = True

    def __post_init__(self) -> None:
        engine = AsyncEngine(self.engine, desk_of(self.engine, self.has_tokenizer))  # type: ignore[arg-type]
        self.service = Service(engine, self.config, ServingMetrics("r1", "demo"), self._check_grammar)
        self.app = Api(self.service, self.keys, self._health, self._metrics).app

    def client(self) -> httpx.AsyncClient:
        """Talks to the app within this process."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    async def post(self, path: str, **body: Any) -> httpx.Response:
        """The answer to one request."""
        async with self.client() as client:
            return await client.post(path, json=body)

    async def _check_grammar(self, spec: str) -> str | None:
        self.grammars.append(spec)
        return self.grammar_problem

    async def _health(self) -> None:
        pass

    async def _metrics(self) -> str:
        return self.service.metrics.render()
