"""Requests of every kind against one server, and the account of what came of them.

What ends normally is counted exactly. Of what its client leaves, and of what a stop string ends, only bounds are known:
the engine may be a few tokens further than anybody has seen.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json, to_json

from penstock.tests.actors.serving.http_connection import Connection, ConnectionEndedError, EventReader

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MIXED = {"whole": 20, "stream": 40, "leave": 14, "leave early": 4, "slow": 4, "bad": 8, "structured": 10}
CALM = {"whole": 30, "stream": 60, "bad": 10}  # everything of it is counted exactly
ANSWER_TIMEOUT_S = 120.0
_SCHEMAS = 40  # different ones, besides a new one now and then


@dataclass(slots=True)
class Tally:
    """What the clients know."""

    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)  # of requests that ended normally
    refused: Counter[int] = field(default_factory=Counter)  # by status
    num_prompt_tokens: int = 0  # a prompt counts for each of its completions
    num_output_tokens: int = 0
    num_left: int = 0  # requests that their clients left
    num_loose_prompt_tokens: int = 0  # at most so many more
    num_loose_output_tokens: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Reply:
    """An answer while it comes, whole or as a stream."""

    streams: bool
    body: bytes = b""
    events: EventReader = field(default_factory=EventReader)
    reasons: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    num_events: int = 0
    wakes: asyncio.Event = field(default_factory=asyncio.Event)  # an event has come

    def take(self, part: bytes, now_s: float) -> None:
        if not self.streams:
            self.body += part
            return
        for data in self.events.take(part):
            self.num_events += 1
            self.read(from_json(data))
        self.wakes.set()

    def read(self, answer: dict[str, Any]) -> None:
        self.usage = answer.get("usage") or self.usage
        for choice in answer.get("choices", ()):
            if choice["finish_reason"] is not None:
                self.reasons[choice["index"]] = choice["finish_reason"]


class Load:
    """Draws requests and sends them, each on a connection that an earlier one left, or on a new one."""

    def __init__(self, port: int, seed: int) -> None:
        self.tally = Tally()
        self._port = port
        self._draw = random.Random(seed)
        self._kept: list[Connection] = []

    async def one(self, kinds: dict[str, int]) -> None:
        """One request, to its end."""
        kind = self._draw.choices(list(kinds), list(kinds.values()))[0]
        self.tally.kinds[kind] += 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._send(kind, is_calm=kinds is CALM)
        except (TimeoutError, ConnectionEndedError, OSError, ValueError, KeyError) as error:
            self.tally.problems.append(f"{kind}: {type(error).__name__} {error}")

    async def _send(self, kind: str, is_calm: bool) -> None:
        if kind == "bad":
            await self._send_bad()
            return
        path = self._draw.choice((COMPLETIONS, CHAT))
        body = self._body(path, is_calm)
        if kind == "structured":
            path, body = CHAT, self._structured()
        elif kind == "slow":
            body |= {"max_tokens": 120, "ignore_eos": True, "n": 1}
        reply = _Reply(streams=kind in ("stream", "leave", "slow"))
        if reply.streams:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if kind.startswith("leave"):
            await self._leave(path, body, reply)
        else:
            await self._read(path, body, reply, is_slow=kind == "slow")

    async def _read(self, path: str, body: dict[str, Any], reply: _Reply, is_slow: bool) -> None:
        """Reads the answer to its end, and counts it."""
        connection = await self._connection()
        asking = asyncio.ensure_future(connection.post(path, body, reply.take))
        if is_slow:
            await self._dawdle(connection, asking)
        status = await asking
        self._keep(connection)
        if not reply.streams:
            reply.read(from_json(reply.body))
        whole = status == 200 and reply.usage is not None and (reply.events.is_done or not reply.streams)
        if not whole or len(reply.reasons) != body.get("n", 1):
            self.tally.problems.append(f"{path} {body}: {status} {reply.reasons} {reply.body[:300]!r}")
            return
        assert reply.usage is not None
        self.tally.reasons[max(reply.reasons.values())] += 1
        self.tally.num_prompt_tokens += reply.usage["prompt_tokens"] * body.get("n", 1)
        self.tally.num_output_tokens += reply.usage["completion_tokens"]
        if "stop" in body:
            self.tally.num_loose_output_tokens += body["max_tokens"] * body.get("n", 1)

    async def _dawdle(self, connection: Connection, asking: asyncio.Future[int]) -> None:
        """Reads now and then."""
        while not asking.done():
            connection.transport.pause_reading()
            await asyncio.wait((asking,), timeout=0.5)
            if not connection.transport.is_closing():
                connection.transport.resume_reading()
            await asyncio.wait((asking,), timeout=0.05)

    async def _leave(self, path: str, body: dict[str, Any], reply: _Reply) -> None:
        """Goes away in the middle: after some events, or, of a whole answer, after some time."""
        connection = await self._connection()
        asking = asyncio.ensure_future(connection.post(path, body, reply.take))
        if reply.streams:
            num_wanted = self._draw.randint(1, 20)
            while reply.num_events < num_wanted and not asking.done():
                reply.wakes.clear()
                waking = asyncio.ensure_future(reply.wakes.wait())
                await asyncio.wait((asking, waking), return_when=asyncio.FIRST_COMPLETED)
                waking.cancel()
        else:
            await asyncio.wait((asking,), timeout=self._draw.random() * 0.3)
        connection.close()
        await asyncio.wait((asking,))
        asking.exception()
        n = body.get("n", 1)
        self.tally.num_left += 1
        self.tally.num_loose_prompt_tokens += n * 600
        self.tally.num_loose_output_tokens += n * body["max_tokens"]

    async def _send_bad(self) -> None:
        """What has to be refused, with the status of a client's mistake."""
        path, data = self._draw.choice(
            (
                (COMPLETIONS, b'{"prompt": "a'),
                (COMPLETIONS, to_json({"prompt": "a" * 2000, "max_tokens": 5})),
                (COMPLETIONS, to_json({"prompt": {"a": 5}, "max_tokens": 5})),
                (COMPLETIONS, to_json({"prompt": "a", "max_tokens": -1})),
                (COMPLETIONS, to_json({"prompt": "a", "n": 1000})),
                (CHAT, to_json({"model": "nobody", "messages": [{"role": "user", "content": "a"}]})),
                (CHAT, to_json({"messages": "a"})),
                (CHAT, b"[" * 500),
            )
        )
        reply = _Reply(streams=False)
        connection = await self._connection()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n"
        status = await connection.ask(head.encode() + data, reply.take)
        self._keep(connection)
        self.tally.refused[status] += 1
        if not 400 <= status < 500 or "message" not in from_json(reply.body)["error"]:
            self.tally.problems.append(f"{path} {data[:100]!r}: {status} {reply.body[:300]!r}")

    def _body(self, path: str, is_calm: bool) -> dict[str, Any]:
        draw = self._draw
        numbers = draw.choice((2, 3, 6, 20, 60))
        text = " + ".join(str(draw.randrange(100)) for _ in range(numbers)) + " ="
        n = draw.choice((1, 1, 1, 1, 2, 3))
        body: dict[str, Any] = {"max_tokens": draw.choice((1, 2, 8, 24, 24, 60, 120)), "n": n}
        body |= {"prompt": text} if path == COMPLETIONS else {"messages": [{"role": "user", "content": text}]}
        body["temperature"] = draw.choice((0, 0, 0.7, 1.0))
        if draw.random() < 0.6:
            body["ignore_eos"] = True
        if draw.random() < 0.1:
            body |= {"logprobs": 3} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 3}
        if draw.random() < 0.1:
            body |= {"presence_penalty": 0.5, "top_k": 20, "top_p": 0.9, "seed": draw.randrange(1000)}
        if not is_calm and draw.random() < 0.15:
            body["stop"] = [str(draw.randrange(10)), "\n"]
        return body

    def _structured(self) -> dict[str, Any]:
        number = self._draw.randrange(_SCHEMAS) if self._draw.random() < 0.95 else self._draw.randrange(1 << 30)
        schema = {
            "type": "object",
            "properties": {f"p{number}": {"type": "integer"}, "q": {"enum": ["a", "b"]}},
            "required": [f"p{number}", "q"],
            "additionalProperties": False,
        }
        return {
            "messages": [{"role": "user", "content": "17 + 25 ="}],
            "max_tokens": 40,
            "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
        }

    async def _connection(self) -> Connection:
        while self._kept:
            connection = self._kept.pop(self._draw.randrange(len(self._kept)))
            if not connection.transport.is_closing():
                return connection
        return await Connection.connect(self._port)

    def _keep(self, connection: Connection) -> None:
        """Most connections serve again."""
        if self._draw.random() < 0.7:
            self._kept.append(connection)
        else:
            connection.close()
