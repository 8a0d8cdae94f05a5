"""How much a front takes on, and every bound that a server's settings put on a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from typing import Any

import pytest

from penstock.actors.prompts import Limits
from penstock.actors.serving.admission import Admission
from penstock.actors.serving.errors import ApiError
from penstock.configs.serving import ServeConfig
from penstock.scheduler.messages import NewRequest, TokenEvent

from ..fake_engine import FakeEngine, echo, scored_echo, spoken
from .served import CHAT, COMPLETIONS, HELLO, Connection, Served, turns


def silent(request: NewRequest) -> list[TokenEvent]:
    return []


def unending(request: NewRequest) -> list[TokenEvent]:
    return spoken(request, "x", reason=None)


def bounded(engine: FakeEngine | None = None, **settings: Any) -> Served:
    return Served(engine or FakeEngine(scored_echo), ServeConfig(served_model_name="demo", **settings))


@asynccontextmanager
async def held(served: Served, path: str = COMPLETIONS, **body: Any) -> AsyncIterator[None]:
    """A request that runs until the block is left."""
    connection = Connection.of(served.app, path, **body)
    running = asyncio.ensure_future(connection.run())
    await turns()
    yield
    connection.leave()
    await running


def full(settings: dict[str, Any], body: dict[str, Any]) -> list[Any]:
    """The answers to a request beside one that fills the server, and behind it."""

    async def ask() -> list[Any]:
        served = bounded(FakeEngine(unending), **settings)
        async with held(served, prompt="ab", **body):
            refused = await served.post(COMPLETIONS, prompt="a", max_tokens=1)
        assert (served.service.admission.num_requests, served.service.admission.num_tokens) == (0, 0)
        served.engine.script = echo
        return [refused, await served.post(COMPLETIONS, prompt="a", max_tokens=1)]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("settings", "body", "words"),
    [
        ({"max_open_requests": 2}, {"n": 2}, "2 requests are open, 1 more would pass the limit of 2"),
        ({"max_open_tokens": 3}, {"max_tokens": 1}, "3 tokens are open, 1 more would pass the limit of 3"),
    ],
)
def test_a_full_server_answers_429_at_once(settings: dict[str, Any], body: dict[str, Any], words: str) -> None:
    refused, served = full(settings, body)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert words in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert served.status_code == 200


@pytest.mark.parametrize("engines", [{"num_replicas": 3}, {"max_replicas": 3}])
@pytest.mark.parametrize("bound", ["max_open_requests", "max_open_tokens"])
def test_the_bounds_are_for_each_engine_that_there_may_be_and_a_request_runs_on_one(
    engines: dict[str, int], bound: str
) -> None:
    admission = Admission(ServeConfig(**{bound: 4}, **engines))
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(admission.admitted(4, 4, 4))
        with pytest.raises(ApiError, match=r"12 .* are open, 1 more would pass the limit of 12"):
            admission.check(1, 1, 1)
    with pytest.raises(ApiError, match=r"comes to 5 .* at most 4"):
        admission.check(5, 5, 5)


def test_chats_without_max_tokens_wait_together_however_much_each_may_come_to() -> None:
    async def open_three() -> int:
        limits = Limits(vocab_size=264, max_model_len=131072, cache_tokens=131072)
        served = bounded(FakeEngine(silent, limits=limits), max_open_tokens=131072)
        async with AsyncExitStack() as open_chats:
            for _ in range(3):
                await open_chats.enter_async_context(held(served, CHAT, messages=HELLO))
            return served.service.admission.num_requests

    assert asyncio.run(open_three()) == 3


def test_an_output_counts_as_it_comes_until_its_request_ends() -> None:
    async def grow() -> list[int]:
        served = bounded(FakeEngine(silent))
        counts = []
        async with held(served, prompt="ab", n=2):
            counts.append(served.service.admission.num_tokens)
            for request in served.engine.requests:
                served.engine.say(spoken(request, "xyz", reason=None)[0])
                await turns()
                counts.append(served.service.admission.num_tokens)
        return [*counts, served.service.admission.num_tokens]

    assert asyncio.run(grow()) == [4, 7, 10, 0]


def test_a_stream_is_refused_before_it_begins() -> None:
    async def ask() -> int:
        served = bounded(FakeEngine(silent), max_open_requests=1)
        async with held(served, prompt="a"):
            return (await served.post(CHAT, messages=HELLO, stream=True)).status_code

    assert asyncio.run(ask()) == 429


@pytest.mark.parametrize(
    ("settings", "what"), [({"max_open_requests": 3}, "requests"), ({"max_open_tokens": 8}, "tok")]
)
def test_what_never_fits_is_not_told_to_try_again(settings: dict[str, Any], what: str) -> None:
    served = bounded(**settings)
    assert what in served.refusal(COMPLETIONS, prompt="a", n=4, max_tokens=2)["message"]
    assert served.engine.requests == []


def test_a_request_counts_no_more_tokens_than_a_sequence_can_have() -> None:
    limits = Limits(vocab_size=264, max_model_len=512, cache_tokens=1024)
    served = bounded(FakeEngine(limits=limits), max_open_tokens=512)
    assert served.ask(COMPLETIONS, prompt="a", max_tokens=1 << 60)


def test_a_server_that_drains_lets_run_what_runs_and_takes_nothing_new() -> None:
    async def drain() -> None:
        served = bounded(FakeEngine(silent))
        async with held(served, prompt="a"):
            served.service.admission.is_draining = True
            refused = await served.post(COMPLETIONS, prompt="a")
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "draining"
            assert "retry-after" in refused.headers
            assert served.engine.aborted == []

    asyncio.run(drain())


@pytest.mark.parametrize(
    ("settings", "path", "body", "words"),
    [
        ({"max_prompts": 2}, COMPLETIONS, {"prompt": ["a", "b", "c"]}, "prompts: 3, at most 2"),
        ({"max_n": 2}, COMPLETIONS, {"prompt": "a", "n": 3}, "n: 3, at most 2"),
        ({"max_n": 2}, CHAT, {"messages": HELLO, "n": 3}, "n: 3, at most 2"),
        ({"max_logprobs": 2}, COMPLETIONS, {"prompt": "a", "logprobs": 3}, "logprobs: 3, at most 2"),
        (
            {"max_logprobs": 2},
            CHAT,
            {"messages": HELLO, "logprobs": True, "top_logprobs": 3},
            "top_logprobs: 3, at most 2",
        ),
        ({"max_stop_strings": 1}, CHAT, {"messages": HELLO, "stop": ["a", "b"]}, "stop strings: 2, at most 1"),
        ({"max_stop_chars": 2}, COMPLETIONS, {"prompt": "a", "stop": "abc"}, "a stop string: 3, at most 2"),
    ],
)
def test_every_bound_of_a_request_is_a_setting(settings: dict[str, Any], path: str, body: Any, words: str) -> None:
    served = bounded(**settings)
    assert words in served.refusal(path, **body)["message"]
    assert bounded().ask(path, **body)


def test_a_body_larger_than_the_bound_is_refused_unread() -> None:
    served = bounded(max_body_bytes=1024)
    error = served.refusal(COMPLETIONS, 413, prompt="a" * 1024)
    assert "larger than 1024 bytes" in error["message"]

    async def in_pieces() -> Connection:
        connection = Connection(served.app, COMPLETIONS, b"")
        for _ in range(5):
            connection.incoming.put_nowait({"type": "http.request", "body": b" " * 300, "more_body": True})
        await asyncio.wait_for(connection.run(), 5)
        return connection

    assert asyncio.run(in_pieces()).status == 413


def test_bodies_that_are_read_at_once_are_bounded_together() -> None:
    async def many() -> tuple[int | None, int]:
        served = bounded(max_body_bytes=1024)
        slow = [Connection(served.app, COMPLETIONS, b"") for _ in range(33)]
        for connection in slow:
            connection.incoming.put_nowait({"type": "http.request", "body": b" " * 1000, "more_body": True})
        tasks = [asyncio.create_task(connection.run()) for connection in slow]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=5)
        statuses = [connection.status for connection in slow if connection.sent]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return statuses[0], served.service.admission.num_bytes

    assert asyncio.run(many()) == (429, 0)


def test_a_body_that_does_not_come_is_given_up() -> None:
    async def half_sent() -> Connection:
        connection = Connection(bounded(body_timeout_s=0.05).app, COMPLETIONS, b"")
        connection.incoming.put_nowait({"type": "http.request", "body": b'{"prompt"', "more_body": True})
        await asyncio.wait_for(connection.run(), 5)
        return connection

    connection = asyncio.run(half_sent())
    assert connection.status == 408
    assert (b"connection", b"close") in connection.sent[0]["headers"]


def test_a_client_that_leaves_within_its_body_is_nobodys_error(caplog: pytest.LogCaptureFixture) -> None:
    async def leave() -> None:
        connection = Connection(bounded().app, COMPLETIONS, b"")
        connection.incoming.put_nowait({"type": "http.request", "body": b'{"prompt"', "more_body": True})
        connection.leave()
        await asyncio.wait_for(connection.run(), 5)

    asyncio.run(leave())
    assert "failed" not in caplog.text


def test_the_servers_name_for_the_model_is_the_one_that_is_known() -> None:
    served = bounded()
    error = served.refusal(COMPLETIONS, 404, prompt="a", model="gpt-9")
    assert error["code"] == "model_not_found"
    assert "'gpt-9' does not exist; 'demo' is served" in error["message"]
    renamed = Served(config=ServeConfig(served_model_name="mine"))
    assert renamed.ask(COMPLETIONS, prompt="a", model="mine")["model"] == "mine"
