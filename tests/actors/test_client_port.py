"""A client whose socket is full costs the engine nothing, and gets one event for each request when it reads again."""

from __future__ import annotations

from typing import cast

import pytest

from penstock.actors.client_port import ClientPort
from penstock.actors.sockets import Receiver, Sender
from penstock.actors.wire import Kind, decode_events, decode_text, unframe
from penstock.scheduler.messages import FinishReason, TokenEvent
from penstock.scheduler.plan import ints


class FakeSender:
    """A socket that is full on command; it is its own zmq socket."""

    def __init__(self) -> None:
        self.zmq_socket = self
        self.full = False
        self.sent: list[bytes] = []

    def poll(self, timeout: int, flags: int) -> int:
        return 0 if self.full else flags

    def send(self, data: bytes) -> bool:
        if not self.full:
            self.sent.append(data)
        return not self.full

    def take_events(self) -> list[TokenEvent]:
        frames, self.sent = self.sent, []
        return [event for data in frames for event in decode_events(unframe(data)[1], "c")]


class FakeLog:
    """The outputs so far; a request ends with token 9."""

    def __init__(self) -> None:
        self.outputs: dict[str, list[int]] = {}
        self.errors: dict[str, str] = {}
        self.forgotten: list[str] = []

    def grow(self, request_id: str, token: int) -> TokenEvent:
        tokens = self.outputs.setdefault(request_id, [])
        tokens.append(token)
        return self.event(request_id, len(tokens) - 1)

    def event(self, request_id: str, start: int) -> TokenEvent:
        tokens = self.outputs[request_id]
        error = self.errors.get(request_id)
        reason: FinishReason | None = "error" if error else "stop" if 9 in tokens else None
        return TokenEvent("c", request_id, start, ints(tokens[start:]), finish_reason=reason, error=error)

    def catch_up(self, client_id: str, request_id: str, start: int) -> TokenEvent | None:
        return self.event(request_id, start) if request_id in self.outputs else None

    def forget(self, client_id: str, request_id: str) -> None:
        self.forgotten.append(request_id)


class Rig:
    def __init__(self) -> None:
        self.sender, self.log = FakeSender(), FakeLog()
        self.port = ClientPort("c", cast("Receiver", None), cast("Sender", self.sender), self.log)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_a_step_is_one_message(rig: Rig) -> None:
    rig.port.deliver([rig.log.grow("a", 1), rig.log.grow("b", 2)])
    assert len(rig.sender.sent) == 1
    assert not rig.port.is_behind


def test_missed_steps_become_one_event_for_each_request(rig: Rig) -> None:
    rig.port.deliver([rig.log.grow("a", 1)])
    rig.sender.full = True
    for token in (2, 3, 9):
        rig.port.deliver([rig.log.grow("a", token), rig.log.grow("b", token)])
    rig.port.catch_up()
    assert rig.port.is_behind
    rig.sender.take_events()
    rig.sender.full = False
    rig.port.catch_up()
    events = rig.sender.take_events()
    assert [(e.request_id, e.start, e.token_ids.tolist(), e.finish_reason) for e in events] == [
        ("a", 1, [2, 3, 9], "stop"),
        ("b", 0, [2, 3, 9], "stop"),
    ]
    assert not rig.port.is_behind


def test_an_event_never_overtakes_what_waits(rig: Rig) -> None:
    rig.sender.full = True
    rig.port.deliver([rig.log.grow("a", 1)])
    rig.sender.full = False
    rig.port.deliver([rig.log.grow("a", 2)])
    assert not rig.sender.sent
    rig.port.catch_up()
    assert [e.token_ids.tolist() for e in rig.sender.take_events()] == [[1, 2]]


def test_a_refusal_waits_too_though_the_log_does_not_know_it(rig: Rig) -> None:
    rig.sender.full = True
    rig.port.deliver([TokenEvent("c", "r", 0, finish_reason="error", error="too long: 9 > 8")])
    rig.sender.full = False
    rig.port.catch_up()
    assert [e.error for e in rig.sender.take_events()] == ["too long: 9 > 8"]


def test_a_finished_request_is_forgotten_once_its_end_is_sent(rig: Rig) -> None:
    rig.sender.full = True
    rig.port.deliver([rig.log.grow("a", 9)])
    assert not rig.log.forgotten
    rig.sender.full = False
    rig.port.catch_up()
    assert rig.log.forgotten == ["a"]


def test_the_news_of_the_engines_end_comes_last_and_is_not_lost(rig: Rig) -> None:
    rig.sender.full = True
    rig.port.deliver([rig.log.grow("a", 1)])
    rig.port.say_failed("stage 1 died")
    rig.sender.full = False
    rig.port.catch_up()
    kinds = [unframe(data) for data in rig.sender.sent]
    assert [kind for kind, _ in kinds] == [Kind.EVENTS, Kind.FAILED]
    assert decode_text(kinds[1][1]) == "stage 1 died"
    assert not rig.port.is_behind


def test_what_the_engines_end_has_ended_gets_its_tokens_and_no_end_before_the_news(rig: Rig) -> None:
    rig.sender.full = True
    rig.port.deliver([rig.log.grow("a", 1), rig.log.grow("b", 9)])
    rig.port.deliver([TokenEvent("c", "r", 0, finish_reason="error", error="too long: 9 > 8")])
    rig.log.errors["a"] = "stage 1 died"
    rig.port.say_failed("stage 1 died")
    rig.sender.full = False
    rig.port.catch_up()
    events = decode_events(unframe(rig.sender.sent[0])[1], "c")
    assert [(e.request_id, e.token_ids.tolist(), e.finish_reason, e.error) for e in events] == [
        ("a", [1], None, None),
        ("b", [9], "stop", None),
        ("r", [], "error", "too long: 9 > 8"),
    ]
