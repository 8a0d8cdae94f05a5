"""The GPU's launchers on a CPU: one buffer for all that a step uploads, and padding to buckets that changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import penstock.model.stage as stage
from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.model.decoder import StageModule
from penstock.model.gpu.eager import EagerLauncher, to_device
from penstock.model.gpu.graphs import GraphLauncher, graph_buckets
from penstock.model.kv_cache import KVCache
from penstock.model.launch import Launcher, StepLimits
from penstock.scheduler.scheduler import Scheduler

from ..actors.reference import expected_tokens, play, scenario
from .tiny import write_tiny_model


class Replay:
    """Stands in for a graph: runs the layers over the shared buffers."""

    def __init__(self, launcher: ReplayingLauncher, rows: int) -> None:
        self._launcher, self._rows = launcher, rows

    def replay(self) -> None:
        launcher, rows = self._launcher, self._rows
        launcher.num_replays += 1
        out = launcher._module(launcher._hidden[:rows].clone(), launcher._static_batch(rows))
        launcher._out[:rows].copy_(out)


class ReplayingLauncher(GraphLauncher):
    """Graphs without a GPU."""

    num_replays = 0

    def _capture_all(self) -> None:
        self._graphs = {rows: Replay(self, rows) for rows in self._buckets.tolist()}  # type: ignore[misc]


def test_a_steps_tensors_travel_together_and_arrive_as_they_were() -> None:
    given = [torch.arange(5), torch.empty(0, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int32), torch.tensor([7])]
    for sent, arrived in zip(given, to_device(given, torch.device("cpu")), strict=True):
        assert arrived.dtype == sent.dtype
        assert torch.equal(arrived, sent)


@pytest.mark.parametrize("most", [1, 3, 64, 100, 512, 1000])
def test_buckets_grow_and_end_with_the_most_rows_that_are_captured(most: int) -> None:
    buckets = graph_buckets(most)
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == min(most, 512)


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
@pytest.mark.parametrize("graphs", [False, True])
def test_tokens_are_those_of_transformers_through_the_gpus_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, graphs: bool
) -> None:
    made: list[EagerLauncher] = []

    def make(module: StageModule, device: torch.device, limits: StepLimits, scratch: int, eager: bool) -> Launcher:
        kind: Any = ReplayingLauncher if graphs else EagerLauncher
        made.append(kind(module, device, limits, *([scratch] if graphs else [])))
        return made[-1]

    whole: Any = stage._StageBuilder._cache

    def cache_with_scratch(builder: Any, num_blocks: int) -> KVCache:
        cache: KVCache = whole(builder, num_blocks + 1)
        return cache

    monkeypatch.setattr(stage, "make_launcher", make)
    monkeypatch.setattr(stage._StageBuilder, "_cache", cache_with_scratch)
    model = write_tiny_model(tmp_path, name)
    model_config = read_model_config(tmp_path)
    scene = scenario(3, model_config.vocab_size)
    limits = {"block_size": 8, "max_model_len": 64, "max_num_seqs": 24, "max_num_batched_tokens": 16}
    config = EngineConfig(model=str(tmp_path), pipeline_parallel_size=2, dtype="float32", device="cpu", **limits)
    driver = start_in_process(config, model_config, Scheduler(scheduler_config(config, model_config, 15)), 15)
    outcome = play(driver, scene)
    driver.close()
    expected = expected_tokens(model, scene.finished)
    assert [outcome.tokens[f"r{i}"] for i in range(len(expected))] == expected
    assert not graphs or all(each.num_replays for each in made if isinstance(each, ReplayingLauncher))
