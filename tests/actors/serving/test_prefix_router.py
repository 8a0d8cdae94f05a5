"""Where the prefix-aware router sends a prompt: fake candidates, no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from penstock.actors.serving import prefix_router as module
from penstock.actors.serving.prefix_router import MAX_LEAD, PrefixAwareRouter
from penstock.actors.serving.routed_engine import MAX_PREFIX_CHUNKS, PREFIX_CHUNK_TOKENS, prefix_of

ENGINES = DeploymentID("engine", "penstock")
IDS = [ReplicaID(f"r{i}", ENGINES) for i in range(4)]
REPLICAS: list[Any] = [SimpleNamespace(replica_id=each) for each in IDS]
LONG = list(range(4 * PREFIX_CHUNK_TOKENS))


@pytest.fixture
def router() -> PrefixAwareRouter:
    made = PrefixAwareRouter(ENGINES, DeploymentHandleSource.UNKNOWN)
    made.initialize_state()
    return made


def pending(token_ids: Sequence[int]) -> Any:
    return SimpleNamespace(args=[prefix_of(token_ids)])


def choose(router: PrefixAwareRouter, token_ids: Sequence[int], among: list[Any] = REPLICAS) -> list[list[ReplicaID]]:
    ranks = asyncio.run(router.choose_replicas(among, pending(token_ids)))
    return [[replica.replica_id for replica in rank] for rank in ranks]


def route(router: PrefixAwareRouter, token_ids: Sequence[int], to: ReplicaID) -> None:
    router.on_request_routed(pending(token_ids), to, cast(Any, None))


def load(router: PrefixAwareRouter, *in_flight: int) -> None:
    for replica_id, number in zip(IDS, in_flight, strict=True):
        router.replica_queue_len_cache.update(replica_id, number)


def test_a_beginning_nobody_has_seen_goes_to_the_emptier_of_two(router: PrefixAwareRouter) -> None:
    (two,) = choose(router, LONG)
    assert len(set(two)) == 2
    assert choose(router, LONG, REPLICAS[:1]) == [[IDS[0]]]
    assert choose(router, LONG, []) == []


def test_equal_beginnings_go_to_the_same_engine_and_the_longest_decides(router: PrefixAwareRouter) -> None:
    half = LONG[: 2 * PREFIX_CHUNK_TOKENS]
    route(router, half, IDS[1])
    assert choose(router, LONG)[0] == [IDS[1]]
    route(router, LONG, IDS[2])
    assert choose(router, [*LONG, 7])[0] == [IDS[2]]
    route(router, [*half, *[5] * 64], IDS[3])
    assert choose(router, [*half, 6, *LONG])[0] == [IDS[3]], "who had the beginning last"
    assert choose(router, LONG)[0] == [IDS[2]]


def test_a_beginning_shorter_than_a_chunk_or_with_another_first_token_is_not_known(router: PrefixAwareRouter) -> None:
    route(router, LONG, IDS[0])
    assert len(choose(router, LONG[: PREFIX_CHUNK_TOKENS - 1])) == 1
    assert len(choose(router, [9, *LONG[1:]])) == 1


def test_an_engine_with_too_much_to_do_gives_its_beginnings_away(router: PrefixAwareRouter) -> None:
    route(router, LONG, IDS[0])
    load(router, 3 + MAX_LEAD, 3, 5, 4)
    assert choose(router, LONG)[0] == [IDS[0]]
    load(router, 4 + MAX_LEAD, 3, 5, 4)
    assert len(choose(router, LONG)) == 1


def test_an_engine_that_is_gone_is_not_chosen(router: PrefixAwareRouter) -> None:
    route(router, LONG, IDS[0])
    assert all(IDS[0] not in rank for rank in choose(router, LONG, REPLICAS[1:]))


def test_what_was_longest_unused_is_forgotten_first(router: PrefixAwareRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHUNKS", 2)
    one, two, three = ([token] * PREFIX_CHUNK_TOKENS for token in (1, 2, 3))
    for each in (one, two, one, three):
        route(router, each, IDS[0])
    assert [len(choose(router, each)) for each in (one, two, three)] == [2, 1, 2]


def test_a_prompts_chunks_are_bounded_and_each_covers_all_before_it() -> None:
    assert len(prefix_of(range(100_000))) == MAX_PREFIX_CHUNKS
    same_end = [prefix_of([first, *LONG[1:]]) for first in (0, 1)]
    assert not set(same_end[0]) & set(same_end[1])
    assert prefix_of([]) == []
