"""The HTTP API over a source of tokens that costs next to nothing: what is left is the way from an event to a client.

`python -m penstock.tests.benchmarks.costless PORT` serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from penstock.actors.async_engine import AsyncEngine
from penstock.actors.prompts import Limits
from penstock.actors.serving.api import Api
from penstock.actors.serving.auth import Keys
from penstock.actors.serving.http_server import HttpServer
from penstock.actors.serving.metrics import ServingMetrics
from penstock.actors.serving.service import Service
from penstock.configs.serving import ServeConfig
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import ints

from ..actors.fake_engine import FakeEngine, OnEvent, desk_of

WORD = ints([97])  # the token that is said over and over


@dataclass
class Costless(FakeEngine):
    """Says a token of every request in turn, as one step of an engine does, on a thread of its own."""

    limits: Limits = field(default_factory=lambda: Limits(vocab_size=264, max_model_len=100_000, cache_tokens=1 << 40))
    running: dict[str, tuple[NewRequest, OnEvent]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def submit(self, request: NewRequest, on_event: OnEvent) -> None:
        with self.lock:
            self.running[request.request_id] = (request, on_event)

    def abort(self, request_id: str) -> None:
        with self.lock:
            self.running.pop(request_id, None)

    def speak(self, step_s: float, wait: Callable[[float], object]) -> None:
        said: dict[str, int] = {}
        while True:
            wait(step_s)
            with self.lock:
                batch = list(self.running.items())
            for request_id, (request, on_event) in batch:
                start = said.get(request_id, 0)
                last = start + 1 >= request.max_tokens
                if last:
                    self.abort(request_id)
                    said.pop(request_id, None)
                else:
                    said[request_id] = start + 1
                on_event(TokenEvent("", request_id, start, WORD, finish_reason="length" if last else None))


async def serve(port: int, step_s: float) -> None:
    """Serves until standard input ends."""
    source = Costless()
    threading.Thread(target=source.speak, args=(step_s, threading.Event().wait), daemon=True).start()
    engine = AsyncEngine(source, desk_of(source))  # type: ignore[arg-type]
    service = Service(engine, ServeConfig(served_model_name="demo"), ServingMetrics("r", "demo"), _any_grammar)
    server = HttpServer(Api(service, Keys([]), _healthy, _nothing).app, "127.0.0.1", port, 30.0)
    await server.start()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(1.0)


async def _any_grammar(spec: str) -> str | None:
    return None


async def _healthy() -> None:
    pass


async def _nothing() -> str:
    return ""


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
