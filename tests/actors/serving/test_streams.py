"""Clients that leave, that read slowly, and engines that end in the middle; the app's own two ends in hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from penstock.errors import EngineDeadError
from penstock.scheduler.messages import NewRequest, TokenEvent

from ..fake_engine import FakeEngine, OnEvent, spoken
from .served import CHAT, COMPLETIONS, HELLO, Connection, Served, events_of, joined_completions, turns

BODIES: dict[str, dict[str, Any]] = {COMPLETIONS: {"prompt": "abc", "max_tokens": 400}, CHAT: {"messages": HELLO}}
MESSAGE = "stage 1 has died"


def silent(request: NewRequest) -> list[TokenEvent]:
    return []


def endless(request: NewRequest) -> list[TokenEvent]:
    return spoken(request, "x", reason=None)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("script", [silent, endless])
@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_leaves_ends_its_requests(
    path: str, script: Callable[[NewRequest], list[TokenEvent]], streams: bool
) -> None:
    async def leave() -> Served:
        served = Served(FakeEngine(script))
        connection = Connection.of(served.app, path, stream=streams, n=2, **BODIES[path])
        running = asyncio.ensure_future(connection.run())
        await turns()
        assert served.service.admission.num_requests == 2
        connection.leave()
        await asyncio.wait_for(running, 5)
        return served

    served = asyncio.run(leave())
    assert sorted(served.engine.aborted) == sorted(request.request_id for request in served.engine.requests)
    assert (served.service.admission.num_requests, served.service.admission.num_tokens) == (0, 0)
    assert 'finish_reason="abort"' in served.service.metrics.render()


def test_what_a_slow_reader_has_missed_comes_together() -> None:
    async def read_slowly() -> bytes:
        served = Served(FakeEngine(silent))
        connection = Connection.of(served.app, COMPLETIONS, prompt="abc", max_tokens=400, stream=True)
        running = asyncio.ensure_future(connection.run())
        await turns()
        events = spoken(served.engine.requests[0], *"abcdefghij" * 20)
        served.engine.say(events[0])
        await turns()
        connection.can_read.clear()
        for event in events[1:]:
            served.engine.say(event)
            await turns()
        connection.can_read.set()
        await asyncio.wait_for(running, 5)
        return connection.answer

    chunks = events_of(asyncio.run(read_slowly()))
    assert len(chunks) <= 4
    assert joined_completions(chunks)[0]["text"] == "abcdefghij" * 20


def test_a_slow_reader_holds_nobody_up() -> None:
    async def read_beside() -> bytes:
        served = Served(FakeEngine())
        slow, quick = (Connection.of(served.app, COMPLETIONS, prompt="abc", stream=True) for _ in range(2))
        slow.can_read.clear()
        waiting = asyncio.ensure_future(slow.run())
        await turns()
        await asyncio.wait_for(quick.run(), 5)
        assert not waiting.done()
        slow.can_read.set()
        await asyncio.wait_for(waiting, 5)
        assert slow.answer
        return quick.answer

    assert joined_completions(events_of(asyncio.run(read_beside())))[0]["text"] == "abc"


def test_a_stream_begins_with_the_first_token_and_not_before() -> None:
    async def statuses() -> list[int]:
        served = Served(FakeEngine(silent))
        connection = Connection.of(served.app, CHAT, messages=HELLO, stream=True)
        running = asyncio.ensure_future(connection.run())
        await turns()
        seen = [len(connection.sent)]
        first, last = spoken(served.engine.requests[0], "x", "y")
        served.engine.say(first)
        await turns()
        seen.append(len(connection.sent))
        assert b'"content":"x"' in connection.answer
        served.engine.say(last)
        await asyncio.wait_for(running, 5)
        return seen

    assert asyncio.run(statuses()) == [0, 2]


class DeadEngine(FakeEngine):
    """Has ended."""

    is_dead = True

    def submit(self, request: NewRequest, on_event: OnEvent) -> None:
        raise EngineDeadError(MESSAGE)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("streams", [False, True])
def test_a_dead_engine_is_a_503_before_the_stream(path: str, streams: bool) -> None:
    error = Served(DeadEngine()).refusal(path, 503, stream=streams, **BODIES[path])
    assert error == {"message": MESSAGE, "type": "server_error", "param": None, "code": "engine_dead"}


def dies(engine: FakeEngine) -> None:
    engine.is_dead = True
    for request in engine.requests:
        engine.say(TokenEvent("", request.request_id, 1, finish_reason="error", error=MESSAGE))


async def dying(path: str, **body: Any) -> Connection:
    """A request whose engine dies behind its first token."""
    served = Served(FakeEngine(endless))
    connection = Connection.of(served.app, path, **BODIES[path], **body)
    running = asyncio.ensure_future(connection.run())
    await turns()
    dies(served.engine)
    await asyncio.wait_for(running, 5)
    assert served.service.admission.num_requests == 0
    return connection


@pytest.mark.parametrize("path", BODIES)
def test_an_engine_that_dies_in_the_middle_is_an_error_event_and_done(path: str) -> None:
    connection = asyncio.run(dying(path, stream=True))
    events = events_of(connection.answer)
    assert connection.status == 200
    assert events[-1]["error"]["code"] == "engine_dead"
    assert MESSAGE in events[-1]["error"]["message"]
    assert len(events) == 2


@pytest.mark.parametrize("path", BODIES)
def test_an_engine_that_dies_in_the_middle_of_a_whole_answer_is_a_503(path: str) -> None:
    connection = asyncio.run(dying(path))
    assert connection.status == 503
    assert MESSAGE.encode() in connection.answer


def test_what_the_engine_refuses_is_a_400_in_its_words() -> None:
    def refused(request: NewRequest) -> list[TokenEvent]:
        return [TokenEvent("", request.request_id, 0, finish_reason="error", error="the value 9 is above 8")]

    served = Served(FakeEngine(refused))
    assert "the value 9 is above 8" in served.refusal(COMPLETIONS, prompt="a")["message"]
    assert "the value 9 is above 8" in served.refusal(COMPLETIONS, prompt="a", stream=True)["message"]


def test_what_nobody_expected_says_nothing_about_the_inside(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeEngine):
        def submit(self, request: NewRequest, on_event: OnEvent) -> None:
            raise ZeroDivisionError("a secret")

    served = Served(Broken())
    assert "secret" not in str(served.refusal(COMPLETIONS, 500, prompt="a"))
    assert "a secret" in caplog.text
    assert caplog.text.count("a request has failed") == 1


def test_events_of_the_engine_that_come_behind_a_leaving_client_harm_nobody() -> None:
    async def leave() -> None:
        served = Served(FakeEngine(endless))
        connection = Connection.of(served.app, COMPLETIONS, stream=True, prompt="a")
        running = asyncio.ensure_future(connection.run())
        await turns()
        connection.leave()
        await asyncio.wait_for(running, 5)
        (request,) = served.engine.requests
        served.engine.say(TokenEvent("", request.request_id, 1, spoken(request, "y")[0].token_ids))
        await turns()
        assert (await served.post(COMPLETIONS, prompt="a", max_tokens=1, n=65)).status_code == 400

    asyncio.run(leave())
