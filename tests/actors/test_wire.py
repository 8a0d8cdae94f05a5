"""What travels over the sockets comes out as it went in, and nothing else is taken."""

from __future__ import annotations

import msgpack
import numpy as np
import pytest

from penstock.actors import wire
from penstock.actors.wire import Kind
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.plan import Logprobs, Sampling, ints

SAMPLING = Sampling(0.5, 3, 0.9, 0.1, 1.1, 0.2, 0.3, 1 << 62, 2, 1, 4, (7, 8), ((1, -2.5), (9, 3.0)))


def test_a_request_survives_the_wire() -> None:
    new = NewRequest("a", ints([1, 2, 70000]), 9, SAMPLING, "c", (4,), (5, 6), True)
    back = wire.decode_request(wire.encode_request(new), "c")
    assert back.prompt_token_ids.tolist() == [1, 2, 70000]
    assert (back.sampling, back.stop_token_ids, back.eos_token_ids, back.ignore_eos) == (SAMPLING, (4,), (5, 6), True)
    assert (back.key, back.max_tokens) == (("c", "a"), 9)


def test_an_id_beyond_32_bits_stays_outside_the_vocabulary() -> None:
    new = NewRequest("a", np.array([1, 1 << 40]), 1)
    assert wire.decode_request(wire.encode_request(new), "c").prompt_token_ids.tolist() == [1, -1]


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent("c", "a", 3, ints([5])),
        TokenEvent("c", "a", 0, ints([5, 6]), num_cached_tokens=16),
        TokenEvent("c", "a", 4, finish_reason="stop", stop_reason=7),
        TokenEvent("c", "a", 0, finish_reason="error", error="too long: 9 > 8"),
    ],
)
def test_an_event_survives_the_wire(event: TokenEvent) -> None:
    (back,) = wire.decode_events(wire.encode_events([event]), "c")
    assert back.token_ids.tolist() == event.token_ids.tolist()
    for name in ("client_id", "request_id", "start", "num_cached_tokens", "finish_reason", "stop_reason", "error"):
        assert getattr(back, name) == getattr(event, name)


def test_logprobs_survive_the_wire() -> None:
    floats = np.array([-0.5], np.float32)
    top = Logprobs(0, 4, ints([3]), floats, ints([1]), ints([[3, 9]]), np.array([[-0.5, -2]], np.float32))
    (back,) = wire.decode_events(wire.encode_events([TokenEvent("c", "a", 0, ints([3]), [top], [top])]), "c")
    assert back.logprobs[0].top_ids.tolist() == [[3, 9]]
    assert back.prompt_logprobs[0].values.tolist() == [-0.5]


def test_a_steady_step_of_64_events_is_small() -> None:
    events = [TokenEvent("c", f"{i:016x}", 100, ints([i])) for i in range(64)]
    assert len(wire.encode_events(events)) < 64 * 32


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb("text"), msgpack.packb([1, None, 2, None, [], [], 0])],
    ids=["empty", "damaged", "short", "another type", "fields of other types"],
)
def test_a_foreign_request_raises_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        wire.decode_request(body, "c")


def test_a_frame_names_its_kind_and_an_unknown_kind_raises() -> None:
    kind, body = wire.unframe(wire.frame(Kind.ABORT, wire.encode_text("a")))
    assert (kind, wire.decode_text(body)) == (Kind.ABORT, "a")
    for data in (b"", b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011
            wire.unframe(data)
