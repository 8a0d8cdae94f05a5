"""What travels over the sockets: one byte that names the kind, then a MessagePack body. Nothing executable.

Bodies of plans and results are `scheduler.codec`'s. A damaged or foreign body raises ValueError.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, cast

import msgpack
import numpy as np

from ..scheduler.codec import decode_logprobs, decode_sampling, encode_logprobs, encode_sampling
from ..scheduler.messages import FinishReason, NewRequest, TokenEvent
from ..scheduler.plan import Ints, Logprobs
from .foreign import check_request

Body = bytes | memoryview
_FINISH_REASONS = (None, "stop", "length", "abort", "error")
_MAX_INT32 = (1 << 31) - 1
_WIRE_INT = np.dtype("<i4")
_NO_TOKENS = np.empty(0, np.int32)


class Kind(IntEnum):
    """The first byte of every frame."""

    HELLO = 0  # the first frame of every sender: the pair is connected
    KEEPALIVE = 1  # engine <-> client: still here
    BYE = 2  # client -> engine: detach me
    PLAN = 3  # engine -> worker
    RESULT = 4  # last stage's rank 0 -> engine
    HEARTBEAT = 5  # worker -> engine: its last retired step
    FAILURE = 6  # worker -> engine: why it can't go on
    REQUEST = 7  # client -> engine
    ABORT = 8  # client -> engine
    EVENTS = 9  # engine -> client: token events of one step
    FAILED = 10  # engine -> client: the engine has ended, and why
    GRAMMAR = 11  # engine -> last stage: a grammar to compile
    COMPILED = 12  # last stage -> engine: that it is, or why not
    FORGET = 13  # engine -> last stage: a grammar that no request uses


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """One message for a socket."""
    return bytes((kind,)) + body


def unframe(data: bytes) -> tuple[Kind, memoryview]:
    """The kind and the body of one message."""
    if not data:
        raise ValueError("an empty message")
    return Kind(data[0]), memoryview(data)[1:]


def encode_request(request: NewRequest) -> bytes:
    """A request without its client id, which the engine knows from the socket."""
    return _pack(
        [
            request.request_id,
            _column(request.prompt_token_ids),
            request.max_tokens,
            encode_sampling(request.sampling),
            list(request.stop_token_ids),
            list(request.eos_token_ids),
            request.ignore_eos,
        ]
    )


def decode_request(data: Body, client_id: str) -> NewRequest:
    """The reverse of `encode_request`, as a request of this client."""
    request_id, prompt, max_tokens, sampling, stop_token_ids, eos_token_ids, ignore_eos = _unpack(data, 7)
    if not isinstance(request_id, str) or not isinstance(max_tokens, int) or not isinstance(prompt, bytes | None):
        raise ValueError(f"a malformed request: id {request_id!r}, max_tokens {max_tokens!r}")
    request = NewRequest(
        request_id=request_id,
        prompt_token_ids=_array(prompt),
        max_tokens=max_tokens,
        sampling=decode_sampling(sampling),
        client_id=client_id,
        stop_token_ids=tuple(stop_token_ids),
        eos_token_ids=tuple(eos_token_ids),
        ignore_eos=bool(ignore_eos),
    )
    check_request(request)
    return request


def encode_events(events: list[TokenEvent]) -> bytes:
    """A client's events of one step, without the client id; trailing defaults are left out."""
    return _pack([_encode_event(event) for event in events])


def decode_events(data: Body, client_id: str) -> list[TokenEvent]:
    """The reverse of `encode_events`."""
    return [_decode_event(fields, client_id) for fields in _load(data, list)]


def encode_text(text: str) -> bytes:
    """An abort's request id, the text of a failure, or a grammar to forget."""
    return _pack(text)


def decode_text(data: Body) -> str:
    """The reverse of `encode_text`."""
    return cast(str, _load(data, str))


def encode_step(step: int) -> bytes:
    """A heartbeat's last retired step; -1 before the first."""
    return _pack(step)


def decode_step(data: Body) -> int:
    """The reverse of `encode_step`."""
    return cast(int, _load(data, int))


def encode_grammar(number: int, spec: str) -> bytes:
    """A grammar to compile, and the number that its answer carries."""
    return _pack([number, spec])


def decode_grammar(data: Body) -> tuple[int, str]:
    """The reverse of `encode_grammar`."""
    number, spec = _unpack(data, 2)
    return number, spec


def encode_compiled(number: int, problem: str | None, num_bytes: int) -> bytes:
    """The answer to a grammar; None: it is compiled, and takes so many bytes."""
    return _pack([number, problem, num_bytes])


def decode_compiled(data: Body) -> tuple[int, str | None, int]:
    """The reverse of `encode_compiled`."""
    number, problem, num_bytes = _unpack(data, 3)
    return number, problem, num_bytes


def _encode_event(event: TokenEvent) -> list[Any]:
    fields: list[Any] = [event.request_id, event.start, _column(event.token_ids)]
    if event.logprobs or event.prompt_logprobs or event.num_cached_tokens or event.finish_reason:
        fields += [_encode_rows(event.logprobs), _encode_rows(event.prompt_logprobs), event.num_cached_tokens]
    if event.finish_reason:
        fields += [_FINISH_REASONS.index(event.finish_reason), event.stop_reason, event.error]
    return fields


def _decode_event(fields: list[Any], client_id: str) -> TokenEvent:
    request_id, start, token_ids, *rest = fields
    event = TokenEvent(client_id, request_id, start, _array(token_ids))
    if rest:
        event.logprobs, event.prompt_logprobs = _decode_rows(rest[0]), _decode_rows(rest[1])
        event.num_cached_tokens = rest[2]
    if len(rest) > 3:
        event.finish_reason = cast("FinishReason | None", _FINISH_REASONS[rest[3]])
        event.stop_reason, event.error = rest[4], rest[5]
    return event


def _encode_rows(rows: list[Logprobs]) -> list[Any] | None:
    return [encode_logprobs(row) for row in rows] or None


def _decode_rows(rows: list[Any] | None) -> list[Logprobs]:
    return [decode_logprobs(row) for row in rows or ()]


def _column(values: Ints) -> bytes | None:
    """Little-endian int32; an id beyond int32 travels as -1, outside every vocabulary, so that it is refused as one."""
    if not values.size:
        return None
    if values.dtype != _WIRE_INT:
        values = np.where((values > _MAX_INT32) | (values < 0), -1, values).astype(_WIRE_INT)
    return values.tobytes()


def _array(data: bytes | None) -> Ints:
    return _NO_TOKENS if data is None else np.frombuffer(data, _WIRE_INT).astype(np.int32, copy=False)


def _pack(value: Any) -> bytes:
    return msgpack.packb(value, use_bin_type=True)  # type: ignore[no-any-return]


def _unpack(data: Body, num_fields: int) -> list[Any]:
    fields = _load(data, list)
    if len(fields) != num_fields:
        raise ValueError(f"a message of {len(fields)} fields, expected {num_fields}")
    return cast("list[Any]", fields)


def _load(data: Body, expected: type) -> Any:
    value = msgpack.unpackb(data, raw=False, strict_map_key=False)
    if not isinstance(value, expected):
        raise ValueError(f"a message of type {type(value).__name__}, expected {expected.__name__}")
    return value
