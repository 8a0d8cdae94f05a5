"""The API over an engine whose every token is known beforehand: no Ray, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.types import ASGIApp, Message

from penstock.actors.async_engine import AsyncEngine
from penstock.actors.serving.api import Api
from penstock.actors.serving.auth import Keys
from penstock.actors.serving.metrics import ServingMetrics
from penstock.actors.serving.service import Service
from penstock.configs.serving import ServeConfig
from penstock.scheduler.messages import TokenEvent

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
    health_problem: Exception | None = None

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

    def ask(self, path: str, **body: Any) -> Any:
        """The answer to a request that is served."""
        response = asyncio.run(self.post(path, **body))
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a request that is served, whose tokens come one event of the engine at a time."""
        response = asyncio.run(self.post(path, stream=True, **body))
        assert response.status_code == 200, response.text
        return events_of(response.content)

    def refusal(self, path: str, status: int = 400, **body: Any) -> Any:
        """The error of a request that isn't served."""
        response = asyncio.run(self.post(path, **body))
        assert response.status_code == status, response.text
        return response.json()["error"]

    def get(self, path: str, **headers: str) -> httpx.Response:
        """The answer to a GET."""

        async def got() -> httpx.Response:
            async with self.client() as client:
                return await client.get(path, headers=headers)

        return asyncio.run(got())

    async def _check_grammar(self, spec: str) -> str | None:
        self.grammars.append(spec)
        return self.grammar_problem

    async def _health(self) -> None:
        if self.health_problem is not None:
            raise self.health_problem

    async def _metrics(self) -> str:
        return self.service.metrics.render()


class Paced(FakeEngine):
    """Says one event of every open request, then lets their readers read, and so on."""

    def submit(self, request: Any, on_event: Any) -> None:
        self.requests.append(request)
        self.listeners[request.request_id] = on_event
        self._tasks = [*getattr(self, "_tasks", ()), asyncio.ensure_future(self._talk(self.script(request)))]

    async def _talk(self, events: Iterable[TokenEvent]) -> None:
        for event in events:
            await turns()
            if event.request_id not in self.aborted:
                self.say(event)


async def turns(count: int = 12) -> None:
    """Lets everything on the loop that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Connection:
    """A request to the app by a client whose both ends the test holds in its hands."""

    app: ASGIApp
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.can_read = asyncio.Event()  # cleared: the client reads nothing
        self.can_read.set()

    @classmethod
    def of(cls, app: ASGIApp, path: str, **body: Any) -> Connection:
        """With a whole body of JSON."""
        connection = cls(app, path, json.dumps(body).encode())
        connection.incoming.put_nowait({"type": "http.request", "body": connection.body, "more_body": False})
        return connection

    def leave(self) -> None:
        """The client closes."""
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def run(self) -> None:
        """Until the app is done with it."""
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        scope = {"type": "http", "method": "POST", "path": self.path, "query_string": b"", "headers": headers}
        await self.app(scope | {"http_version": "1.1", "scheme": "http"}, self.incoming.get, self._send)

    @property
    def status(self) -> int:
        """What the app answered with."""
        return int(self.sent[0]["status"])

    @property
    def answer(self) -> bytes:
        """What the client has read of the body."""
        return b"".join(message.get("body", b"") for message in self.sent)

    async def _send(self, message: Message) -> None:
        await self.can_read.wait()
        self.sent.append(message)


def events_of(stream: bytes) -> list[Any]:
    """The JSON of a stream's events, whose framing is held to what clients of the field read."""
    assert stream.endswith(b"data: [DONE]\n\n")
    events = stream.split(b"\n\n")
    assert events.pop() == b""
    assert all(event.startswith(b"data: ") and b"\n" not in event for event in events)
    return [json.loads(event[len(b"data: ") :]) for event in events[:-1]]


def joined_completions(events: list[Any]) -> dict[int, dict[str, Any]]:
    """The choices that a stream's pieces add up to."""
    choices: dict[int, dict[str, Any]] = {}
    for piece in (piece for event in events for piece in event["choices"]):
        whole = choices.setdefault(piece["index"], {"index": piece["index"], "text": ""})
        assert whole.get("finish_reason") is None, "something came behind the end"
        whole["text"] += piece["text"]
        _take_rest(whole, piece)
    return choices


def joined_chat(events: list[Any]) -> dict[int, dict[str, Any]]:
    """The same for messages."""
    choices: dict[int, dict[str, Any]] = {}
    for piece in (piece for event in events for piece in event["choices"]):
        whole = choices.setdefault(piece["index"], {"index": piece["index"], "message": {"refusal": None}})
        assert whole.get("finish_reason") is None, "something came behind the end"
        _take_delta(whole["message"], piece["delta"])
        _take_rest(whole, piece)
    for whole in choices.values():
        if "tool_calls" in whole["message"]:
            whole["message"]["content"] = whole["message"]["content"] or None
    return choices


def _take_delta(message: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "role":
            assert "role" not in message, "the role came twice"
            message["role"] = value
        elif name == "tool_calls":
            for call in value:
                _take_call(message.setdefault("tool_calls", []), call)
        else:
            message[name] = message.get(name, "") + value


def _take_call(calls: list[Any], piece: dict[str, Any]) -> None:
    if piece["index"] == len(calls):
        calls.append({"id": piece["id"], "type": piece["type"], "function": piece["function"]})
    else:
        calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]


def _take_rest(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    for name in ("finish_reason", "stop_reason"):
        whole[name] = piece[name]
    for name in ("token_ids", "prompt_token_ids"):
        if name in piece:
            whole[name] = whole.get(name, []) + piece[name]
    if piece["logprobs"] is None:
        whole.setdefault("logprobs", None)
        return
    columns = whole.setdefault("logprobs", {name: [] for name in piece["logprobs"]})
    for name, values in piece["logprobs"].items():
        columns[name] = None if values is None else columns[name] + values
