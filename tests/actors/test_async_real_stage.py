"""It is async with the real stage too: late results cost nothing, and the timeline shows why.

The model is tiny and its layers are held to a fixed time by a sleep, as a GPU's would be that computes without the
CPU: two cores can't run four stages side by side otherwise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock.actors.in_process import PipelineDriver, start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.model.work import StepWork
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import ints
from penstock.scheduler.scheduler import Scheduler
from penstock.scheduler.timeline import write_chrome_trace

from ..model.tiny import write_tiny_model
from ..scheduler.pipelines import kept_with_late_results

LAYERS_S = 0.04
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder, "qwen3")
    return folder


def start(folder: Path, stages: int, async_on: bool, delay_s: float) -> PipelineDriver:
    config = EngineConfig(
        model=str(folder),
        pipeline_parallel_size=stages,
        async_scheduling=async_on,
        result_delay_ms=delay_s * 1000,
        max_model_len=128,
        max_num_seqs=8,
        device="cpu",
        trace="unused",
    )
    model_config = read_model_config(folder)
    model_config = replace(model_config, max_position_embeddings=128)
    driver = start_in_process(config, model_config, Scheduler(scheduler_config(config, model_config, 64)), 64)
    for rank in driver.ranks:
        stage: Any = rank._stage
        stage._launcher.run = slowed(stage._launcher.run)
    return driver


def slowed(launch: Callable[[StepWork], None]) -> Callable[[StepWork], None]:
    def run(work: StepWork) -> None:
        end = time.monotonic() + LAYERS_S
        launch(work)
        time.sleep(max(0.0, end - time.monotonic()))

    return run


def steps_per_second(driver: PipelineDriver, stages: int) -> float:
    """Decodes one sequence for each stage; the first steps, which prefill, are left out."""
    for i in range(stages):
        driver.scheduler.add_request(NewRequest(f"r{i}", ints([5, 6, 7]), NUM_TOKENS, ignore_eos=True))
    events, warm = driver.run(), 2 * stages
    while driver.num_steps < warm:
        next(events)
    begun, first = time.monotonic(), driver.num_steps
    for _ in events:
        pass
    rate = (driver.num_steps - first) / (time.monotonic() - begun)
    driver.close()
    return rate


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_late_results_cost_the_real_stage_nothing_with_async_on_and_do_with_it_off(folder: Path, stages: int) -> None:
    def rate(async_on: bool, delay_s: float) -> float:
        return steps_per_second(start(folder, stages, async_on, delay_s), stages)

    kept = kept_with_late_results(rate)
    assert kept.shows_asynchrony, kept


def test_the_timeline_shows_receives_ahead_named_waits_and_a_chrome_trace(folder: Path, tmp_path: Path) -> None:
    driver = start(folder, 3, True, 0.0)
    steps_per_second(driver, 3)
    middle = driver.ranks[1].timeline.spans
    posted = {s.step: s.start_ns for s in middle if s.lane == "receive" and not s.is_wait}
    sent = {s.step: s.end_ns for s in middle if s.lane == "send" and not s.is_wait}
    ahead = [posted[t + 1] < sent[t] for t in sent if t + 1 in posted]
    assert sum(ahead) >= 0.8 * len(ahead), "the receive for t + 1 is posted before t's send completes"
    names = {s.name for rank in driver.ranks for s in rank.timeline.spans if s.is_wait and s.lane == "compute"}
    assert names <= {f"wait: {cause}" for cause in ("plan", "activations", "tokens", "send_buffer")}
    write_chrome_trace(tmp_path / "run.json", {f"stage {i}": r.timeline.spans for i, r in enumerate(driver.ranks)})
    events = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == 1 and e["tid"] == 0 and e["cat"] == "work"]
    assert len({e["args"]["step"] for e in slices}) == driver.num_steps
