"""Requests that no client should send, made from a seed, and one connection that sends them."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

READ_TIMEOUT_S = 90.0
HELLO = [{"role": "user", "content": "a"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"messages": HELLO, "max_tokens": 2},
    "/v1/responses": {"input": HELLO, "max_output_tokens": 2},
    "/tokenize": {"messages": HELLO},
    "/detokenize": {"tokens": [97]},
}
PATHS = list(BODIES)
FIELDS = [
    *("model", "prompt", "n", "stream", "stream_options", "temperature", "top_p", "top_k", "min_p", "logprobs", "echo"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "seed", "max_tokens", "min_tokens"),
    *("stop", "stop_token_ids", "prompt_token_ids", "messages", "tools", "tool_choice", "response_format", "tokens"),
    *("structured_outputs", "chat_template_kwargs", "request_id", "metadata", "best_of", "suffix", "user", "nonsense"),
    *("input", "include", "instructions", "reasoning", "text"),
]
HUGE = [10**9, 2**31, 2**62, 2**63 - 1, 2**63, 10**40, -1, -(2**63), 1e308, 1e-308, 5e-324, -0.0, 0]
SMALL: dict[str, Any] = {"prompt": "17 + 25 =", "max_tokens": 3}
EXTREMES: list[dict[str, Any]] = [  # within every field's limits
    *({"temperature": t, "seed": 1, "logprobs": 2} for t in (1e-300, 1e-30, 1e-5, 100)),
    *({"repetition_penalty": p, "logprobs": 2} for p in (1e-300, 1e-30, 1e6)),
    *({"top_k": k, "temperature": 1} for k in (2**62, 2**63 - 1, 1)),
    {"top_p": 1e-300, "temperature": 1, "min_p": 1.0},
    {"min_tokens": 3, "stop_token_ids": [2**31 - 1, 264, 0]},
    {"min_tokens": 2**62, "max_tokens": None},
    {"max_tokens": 2**63 - 1, "stop": "4"},
    {"seed": -(2**63), "temperature": 1, "n": 3},
    {"logit_bias": {str(token): -100 for token in range(264)}, "logprobs": 1},
    {"logit_bias": {"0": 100, "00": -100}, "presence_penalty": -2, "frequency_penalty": 2},
    {"stop": ["a" * 256] * 16, "include_stop_str_in_output": True},
    {"n": 64, "temperature": 1, "max_tokens": 1},
    {"prompt": [256, 257, 258, 263, 255], "skip_special_tokens": False, "echo": True, "logprobs": 1},
    {"prompt": "\x00\ud83d\ude00\u202e" * 20, "echo": True, "logprobs": 0},
    {"request_id": "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"},
    {"ignore_eos": True, "max_tokens": 400, "stream": True},
]


@dataclass
class Attack:
    """What is sent on one connection, and whether anybody waits for an answer."""

    kind: str
    pieces: list[bytes]
    waits: bool = True
    pause_s: float = 0.0  # between the pieces


def attacks(seed: int, count: int, num_grammars: int) -> Iterator[Attack]:
    """So many of every kind in turn, the costly ones fewer."""
    draw = random.Random(seed)
    makers: list[Callable[[random.Random], Attack]] = [
        *(_noise, _deep, _huge_numbers, _wrong_types, _wrong_types, _wrong_types, _extreme, _extreme, _broken_text),
        *(_half_body, _half_head, _slow, _large_head, _broken_chunks, _wrong_length, _pipelined, _left, _cut, _many),
    ]
    every = max(count // max(num_grammars, 1), 1)
    for at in range(count):
        yield (_grammar if at % every == every - 1 else makers[at % len(makers)])(draw)


async def carry_out(port: int, attack: Attack) -> int | None:
    """The status of the answer; None: there was none. Raises TimeoutError where the server neither says nor ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in attack.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(attack.pause_s)
        if not attack.waits:
            return None
        answer = await asyncio.wait_for(reader.read(), READ_TIMEOUT_S)
        assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:200]
        return int(answer[9:12]) if answer else None
    except ConnectionError:
        return None  # it was closed in the middle of what nobody wants
    finally:
        writer.close()


def post(path: str, body: bytes, headers: bytes = b"") -> bytes:
    """A request that ends its connection."""
    head = b"POST %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n" % (path.encode(), len(body))
    return head + headers + b"\r\n" + body


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _noise(draw: random.Random) -> Attack:
    noise = draw.randbytes(draw.randrange(1, 2000))
    start = draw.choice([b"", b"POST ", b"POST /v1/completions HTTP/1.1\r\n", b"\x16\x03\x01"])
    return Attack("noise", [start + noise, b"\r\n\r\n"], waits=False)


def _deep(draw: random.Random) -> Attack:
    depth = draw.choice([50, 190, 250, 5000, 200_000])
    opening, closing = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    value = opening * depth + b"1" + closing * depth
    field = draw.choice(FIELDS).encode()
    return Attack("deep", [post(draw.choice(PATHS), b'{"prompt":"a","%s":%s}' % (field, value))])


def _huge_numbers(draw: random.Random) -> Attack:
    fields = {draw.choice(FIELDS): draw.choice(HUGE) for _ in range(2)}
    body = _json({"prompt": "a", "max_tokens": 2} | fields)
    return Attack("huge numbers", [post("/v1/completions", body.replace(b"1e+308", b"9" * draw.choice([400, 5000])))])


def _value(draw: random.Random, depth: int = 0) -> Any:
    plain: list[Any] = [None, True, "", "a", "\u0000", "x" * 300, draw.choice(HUGE), [], {}, [1, "a"], -1, 1.5]
    if depth > 3 or draw.random() < 0.6:
        return draw.choice(plain)
    if draw.random() < 0.5:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    names = [*FIELDS, "role", "content", "type", "function", "name", "json_schema", "schema", "url"]
    return {draw.choice(names): _value(draw, depth + 1) for _ in range(draw.randrange(4))}


def _wrong_types(draw: random.Random) -> Attack:
    path = draw.choice(PATHS)
    body = BODIES[path] | {draw.choice(FIELDS): _value(draw) for _ in range(draw.randrange(1, 4))}
    return Attack("wrong types", [post(path, _json(body))])


def _extreme(draw: random.Random) -> Attack:
    fields = SMALL | draw.choice(EXTREMES)
    return Attack(f"extreme {fields}", [post("/v1/completions", _json(fields))])


def _broken_text(draw: random.Random) -> Attack:
    bad = draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\\ud800", b"\\u12", b"\x00", b"\n"])
    return Attack("broken text", [post(draw.choice(PATHS), b'{"prompt":"a%sb","max_tokens":2}' % bad)])


def _half_body(draw: random.Random) -> Attack:
    whole = post("/v1/completions", _json(SMALL))
    return Attack("half body", [whole[: -draw.randrange(1, 20)]], waits=False)


def _half_head(draw: random.Random) -> Attack:
    return Attack("half head", [post("/v1/completions", b"")[: draw.randrange(5, 70)]], waits=False)


def _slow(draw: random.Random) -> Attack:
    whole = post("/v1/completions", _json(SMALL))
    at = draw.randrange(10, len(whole) - 10)
    return Attack("slow", [whole[:at], *(whole[i : i + 1] for i in range(at, at + 8)), whole[at + 8 :]], pause_s=0.02)


def _large_head(draw: random.Random) -> Attack:
    name = draw.choice([b"X-A", b"Authorization", b"Content-Type", b"Transfer-Encoding"])
    header = name + b": " + b"a" * draw.choice([1000, 70_000, 500_000]) + b"\r\n"
    return Attack("large head", [post("/v1/completions", _json(SMALL), header)])


def _broken_chunks(draw: random.Random) -> Attack:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = draw.choice([b"zz\r\nabc", b"-1\r\n", b"ffffffffffffffff1\r\n", b"3\r\nabcdef\r\n0\r\n\r\n", b"5\r\nabc"])
    return Attack("broken chunks", [head, chunk], waits=not chunk.startswith(b"5"))


def _wrong_length(draw: random.Random) -> Attack:
    body = _json(SMALL)
    length = draw.choice([b"-5", b"abc", b"1e3", b"99999999999999999999", b"%d" % (1 << 40), b"5", b"0"])
    head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: " + length
    return Attack("wrong length", [head + b"\r\n\r\n" + body])


def _pipelined(draw: random.Random) -> Attack:
    good = post("/v1/completions", _json(SMALL)).replace(b"Connection: close\r\n", b"")
    return Attack("pipelined", [good * draw.randrange(1, 4) + draw.randbytes(300), b"\r\n\r\n"])


def _left(draw: random.Random) -> Attack:
    body = _json(SMALL | {"max_tokens": 400, "ignore_eos": True, "stream": draw.random() < 0.7, "n": 2})
    return Attack("left", [post("/v1/completions", body), b""], waits=False, pause_s=draw.random() / 5)


def _cut(draw: random.Random) -> Attack:
    body = bytearray(_json({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "stream": True}))
    for _ in range(draw.randrange(1, 4)):
        body[draw.randrange(len(body))] = draw.randrange(256)
    return Attack("cut", [post("/v1/chat/completions", bytes(body))])


def _many(draw: random.Random) -> Attack:
    value: Any = draw.choice([["a"] * 5000, [{}] * 20_000, [[1]] * 5000, [1] * 100_000, "a" * 1_000_000])
    return Attack("many", [post(draw.choice(PATHS), _json({draw.choice(["prompt", "tokens", "stop"]): value}))])


def _grammar(draw: random.Random) -> Attack:
    node: Any = {"type": "string"}
    for _ in range(draw.choice([20, 60, 180])):
        node = {"type": "object", "properties": {"a": node}, "required": ["a"], "additionalProperties": False}
    loop = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    tree = {"type": "object", "properties": {"a": {"$ref": "#"}, "b": {"type": "array", "items": {"$ref": "#"}}}}
    specs: list[Any] = [
        *({"json": schema} for schema in (node, loop, tree, {"enum": ["x" * 50] * 500}, {"$ref": "http://a/b"}, True)),
        *({"json": {"type": "string", "pattern": p}} for p in ("(a|a?)+$", "^(([a-z])+.)+[A-Z]([a-z])+$", "[")),
        *({"regex": r} for r in ("(a{1,99}){1,99}", "((((a*)*)*)*)*", "(?=a)", "a{100000}", "(.{0,60}){60}")),
        *({"grammar": g} for g in ("root ::= root root", "root ::= a\na ::= b\nb ::= a", 'root ::= "a', "x" * 3000)),
        {"choice": ["a" * 60] * 1000},
    ]
    fields = SMALL | {"structured_outputs": draw.choice(specs)}
    return Attack("grammar", [post("/v1/completions", _json(fields))])
