"""Replicas that come and go: those of a stage that died or hung are replaced, a pause is got over, load brings more.

Apart from the other tests of replicas, whose server has the same name.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock.actors.cluster import free_resources

from ..rig import eventually
from ..test_endings import alive
from .test_replicas import PROMPT, complete, engines, health, num_answered, server, stats, token_ids


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hung_stage_shows_in_health_and_the_replica_is_replaced(
    ray_cluster: str, end: signal.Signals
) -> None:
    with server(pipeline_parallel_size=2) as served:
        expected = token_ids(complete(served, PROMPT))
        (victim,) = engines()
        pid = stats(victim)["workers"][1]["pid"]
        os.kill(pid, end)
        eventually(lambda: health(served) == 503, timeout_s=6)
        eventually(lambda: health(served) == 200, timeout_s=60)
        assert token_ids(complete(served, PROMPT)) == expected
        (replacement,) = engines()
        assert replacement != victim
        eventually(lambda: not alive({pid}))
        eventually(lambda: free_resources()["CPU"] == 14)


@pytest.mark.slow
def test_an_engine_that_paused_until_its_requests_were_given_up_serves_again_and_is_not_replaced(
    ray_cluster: str,
) -> None:
    with server() as served, ThreadPoolExecutor(1) as clients:
        (engine,) = engines()
        pid = stats(engine)["pid"]
        expected = token_ids(complete(served, PROMPT))
        running = clients.submit(complete, served, PROMPT, max_tokens=400)
        eventually(lambda: stats(engine)["scheduler"]["running"] == 1)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert running.result(30).status_code == 503
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: health(served) == 200, timeout_s=10)
        assert token_ids(complete(served, PROMPT)) == expected
        assert engines() == [engine]


@pytest.mark.slow
def test_replicas_come_and_requests_in_flight_decide(ray_cluster: str) -> None:
    with server(max_replicas=2, target_ongoing_requests=2) as served, ThreadPoolExecutor(8) as clients:
        (first,) = engines()
        while_growing = True

        def keep_asking() -> int:
            count = 0
            while while_growing:
                count += len(token_ids(complete(served, PROMPT, max_tokens=100))) // 100
            return count

        asking = [clients.submit(keep_asking) for _ in range(8)]
        try:
            eventually(lambda: len(engines()) == 2, timeout_s=90)
            (new,) = set(engines()) - {first}
            eventually(lambda: num_answered(new) > 0, timeout_s=60)
        finally:
            while_growing = False
        assert all(each.result() > 0 for each in asking)
