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
from penstock.model.gpu.buckets import StepShape
from penstock.model.gpu.eager import EagerLauncher, to_device
from penstock.model.gpu.graphs import GraphLauncher
from penstock.model.launch import Launcher
from penstock.scheduler.scheduler import Scheduler

from ..actors.reference import expected_tokens, play, scenario
from .tiny import write_tiny_model


class Replay:
    """Stands in for a graph: runs the layers over the shared buffers."""

    def __init__(self, launcher: ReplayingLauncher, shape: StepShape) -> None:
        self._launcher, self._shape = launcher, shape

    def replay(self) -> None:
        launcher = self._launcher
        launcher.num_replays += 1
        out = EagerLauncher._launch(launcher, self._shape)
        launcher._out[: self._shape.num_tokens].copy_(out)


class ReplayingLauncher(GraphLauncher):
    """Graphs without a GPU."""

    num_replays = 0

    def _capture_all(self) -> None:
        self._graphs = {shape: Replay(self, shape) for shape in self._buckets.shapes()}  # type: ignore[misc]


def test_a_steps_tensors_travel_together_and_arrive_as_they_were() -> None:
    given = [torch.arange(5), torch.empty(0, dtype=torch.int64), torch.ones(3, 2, dtype=torch.int32), torch.tensor([7])]
    for sent, arrived in zip(given, to_device(given, torch.device("cpu")), strict=True):
        assert arrived.dtype == sent.dtype
        assert torch.equal(arrived, sent)


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
@pytest.mark.parametrize("graphs", [False, True])
def test_tokens_are_those_of_transformers_through_the_gpus_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, graphs: bool
) -> None:
    made: list[EagerLauncher] = []

    def launcher(builder: Any, num_blocks: int, agree: object) -> Launcher:
        kind = ReplayingLauncher if graphs else EagerLauncher
        builder.module.bind_cache(builder._cache(num_blocks + 1))
        made.append(kind(builder.module, torch.device("cpu"), builder.limits, num_blocks))
        return made[-1]

    monkeypatch.setattr(stage._StageBuilder, "launcher", launcher)
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
