"""What a real engine, with stages that cost nothing, tells of its health and its figures."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import TYPE_CHECKING, Any, cast

import pytest

from penstock.actors.async_engine import AsyncEngine
from penstock.actors.engine import EngineHandle, start_engine
from penstock.actors.serving.metrics import ServingMetrics
from penstock.configs.engine import EngineConfig
from penstock.errors import EngineDeadError

from ..rig import Answers, eventually, request
from .test_metrics import value

if TYPE_CHECKING:
    from penstock.actors.frontdesk import Frontdesk

pytestmark = pytest.mark.usefixtures("ray_cluster")


def serve(handle: EngineHandle, num_requests: int) -> None:
    client, answers = handle.client(), Answers()
    for i in range(num_requests):
        client.submit(request(f"r{i}", num_prompt=5, max_tokens=6), answers)
    answers.wait(num_requests)
    client.close()


def seconds_until_dead(handle: EngineHandle, pattern: str) -> float:
    start_s = time.monotonic()
    with pytest.raises(EngineDeadError, match=pattern):
        handle.health()
    return time.monotonic() - start_s


def test_an_engine_tells_its_figures_and_whether_it_lives(tiny_folder: str) -> None:
    config = EngineConfig(
        model=tiny_folder,
        load_format="dummy",
        device="cpu",
        pipeline_parallel_size=2,
        max_num_seqs=4,
        stage_timeout_s=1.5,
        name="figures",
    )
    with start_engine(config, stage_builder="penstock.tests.actors.fake_stage:build") as handle:
        serve(handle, 8)
        stats = handle.stats()
        check_figures(stats)
        assert handle.health().num_steps == stats["scheduler"]["num_steps"]
        engine = AsyncEngine(handle, cast("Frontdesk", None))
        assert asyncio.run(engine.health()).longest_silence_s < config.stage_timeout_s

        os.kill(stats["pid"], signal.SIGSTOP)
        try:
            assert 1.5 < seconds_until_dead(handle, "engine 'figures' doesn't answer") < 2.5
        finally:
            os.kill(stats["pid"], signal.SIGCONT)
        eventually(lambda: handle.health().num_unfinished == 0)

        victim = stats["stages"][1]["pid"]
        os.kill(victim, signal.SIGKILL)
        eventually(lambda: handle.stats()["failure"] is not None, timeout_s=5.0)
        assert seconds_until_dead(handle, rf"stage 1 rank 0 \(pid {victim}\) sent no heartbeat") < 1.0

        os.kill(stats["pid"], signal.SIGKILL)
        assert seconds_until_dead(handle, "engine 'figures' doesn't answer: .*died") < 2.5
    with pytest.raises(EngineDeadError, match="this handle has left it"):
        handle.health()


def check_figures(stats: dict[str, Any]) -> None:
    metrics = ServingMetrics("replica-1", "tiny")
    metrics.observe_engine(stats)
    assert value(metrics, "prompt_tokens_total") == 8 * 5
    assert value(metrics, "generation_tokens_total") == 8 * 6
    assert stats["scheduler"]["num_finished"]["length"] == 8
    assert value(metrics, "queue_time_seconds_count") == 8
    late = value(metrics, "queue_time_seconds_bucket", le="0.002")
    assert late is not None
    assert late < 8, "4 of 8 requests wait for slots while some steps of 2 ms run"
    steps = stats["scheduler"]["num_steps"]
    assert value(metrics, "steps_total") == steps > 10
    for stage in "01":
        busy_s = value(metrics, "stage_busy_seconds_total", stage=stage)
        assert busy_s is not None
        assert busy_s >= 0.002 * steps
