"""Several engines behind one front, and engines that die: real replicas on Ray Serve, over HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import httpx
import pytest
import ray

from penstock.actors.server import Server
from penstock.actors.serving.auth import VARIABLE
from penstock.configs.load import load_configs
from penstock.errors import EngineDeadError

from ..head import free_ports, http_status
from ..rig import eventually

BEGINNING = [7] * 64
PROMPT = [65, 66]
GREEDY = {"model": "demo", "temperature": 0}


@contextmanager
def server(**settings: Any) -> Iterator[Server]:
    config, serving = load_configs("demo", num_kv_blocks=256, drain_timeout_s=1.0, port=free_ports(1)[0], **settings)
    with Server(config, serving) as made:
        yield made


@pytest.fixture(scope="module")
def two(ray_cluster: str) -> Iterator[Server]:
    with server(num_replicas=2, request_router="prefix_aware") as made:
        yield made


def complete(served: Server, prompt: Any, max_tokens: int = 8) -> httpx.Response:
    body = GREEDY | {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "return_token_ids": True}
    return httpx.post(f"{served.url}/v1/completions", json=body, timeout=60)


def token_ids(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    ids: list[int] = response.json()["choices"][0]["token_ids"]
    return ids


def many(served: Server, num_requests: int, max_tokens: int) -> list[httpx.Response]:
    with ThreadPoolExecutor(num_requests) as pool:
        return list(pool.map(lambda _: complete(served, PROMPT, max_tokens), range(num_requests)))


def engines() -> list[str]:
    """The names of the engines that are there; each is its application's and its replica's."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["name"].startswith("penstock-"))


def stats(engine: str) -> dict[str, Any]:
    actor: Any = ray.get_actor(engine, namespace="penstock")
    told: dict[str, Any] = ray.get(actor.stats.remote(), timeout=10)
    return told


def hits(served: Server) -> list[float]:
    """Prefix hits of each engine, as /metrics tells them."""
    text = httpx.get(f"{served.url}/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("penstock_prefix_cache_hits_total")]
    return [float(line.split()[-1]) for each in engines() for line in lines if each.removeprefix("penstock-") in line]


def test_equal_beginnings_go_to_the_engine_that_has_them_cached(two: Server) -> None:
    before = hits(two)
    for last in range(8):
        token_ids(complete(two, [*BEGINNING, last], max_tokens=1))
    gained = [after - earlier for after, earlier in zip(hits(two), before, strict=True)]
    assert sorted(gained) == [0, 7 * len(BEGINNING)]


def test_requests_at_once_are_shared_out(two: Server) -> None:
    before = [num_answered(each) for each in engines()]
    answers = [token_ids(each) for each in many(two, 24, max_tokens=40)]
    assert all(one == other for one, other in pairwise(answers))
    gained = [num_answered(each) - earlier for each, earlier in zip(engines(), before, strict=True)]
    assert sum(gained) == 24
    assert min(gained) >= 4, "a router's count of requests in flight is a moment late"


@pytest.mark.slow
def test_a_killed_engine_takes_its_own_requests_alone(two: Server) -> None:
    expected = token_ids(complete(two, PROMPT, max_tokens=400))
    victim, other = engines()
    with ThreadPoolExecutor(1) as background:
        running = background.submit(many, two, 8, 400)
        eventually(lambda: all(stats(each)["scheduler"]["running"] >= 2 for each in (victim, other)))
        os.kill(stats(victim)["pid"], signal.SIGKILL)
        responses = running.result()
    lost = [each for each in responses if each.status_code == 503]
    assert 0 < len(lost) < 8
    assert all(token_ids(each) == expected for each in responses if each not in lost)
    assert [token_ids(each) for each in many(two, 4, max_tokens=400)] == [expected] * 4
    assert other in engines()
    assert victim not in engines()


@pytest.mark.slow
def test_a_key_of_the_commands_environment_is_asked_for_in_a_cluster_that_was_there_before(
    ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "only-here")
    with server(app_name="guarded") as served:
        assert complete(served, PROMPT).status_code == 401
        models = httpx.get(f"{served.url}/v1/models", headers={"authorization": "Bearer only-here"}, timeout=60)
        assert models.status_code == 200


def num_answered(engine: str) -> int:
    try:
        return int(stats(engine)["scheduler"]["num_finished"]["length"])
    except EngineDeadError:  # it is still starting
        return 0


def health(served: Server) -> int | None:
    return http_status(f"{served.url}/health")
