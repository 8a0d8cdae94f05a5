"""The GPU's launchers on a CPU: padding to buckets changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import penstock.model.stage as stage
from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.model.exchange import NUM_SAMPLED
from penstock.model.gpu.columns import Places
from penstock.model.gpu.eager import EagerLauncher
from penstock.model.gpu.graphs import GraphLauncher
from penstock.model.launch import Launcher
from penstock.model.ring import Ring
from penstock.scheduler.scheduler import Scheduler

from ..actors.reference import expected_tokens, play, scenario
from .tiny import write_tiny_model
from .torch_ends import TorchEnds


class OnCpu(EagerLauncher):
    """With torch in the place of Triton."""

    def _make_ends(self, places: Places) -> TorchEnds:
        takes_tokens = self._exchange.returned is not None
        return TorchEnds(places, self._buffers.limits.block_size, self._embeds, takes_tokens)


class Replay:
    """Stands in for a graph: runs the step over the shared buffers."""

    def __init__(self, launcher: ReplayingLauncher, shape: Any, work: Callable[[ReplayingLauncher, Any], None]) -> None:
        self._launcher, self._shape, self._work = launcher, shape, work

    def replay(self) -> None:
        launcher = self._launcher
        launcher.num_replays += 1
        self._work(launcher, self._shape)


class ReplayingLauncher(OnCpu, GraphLauncher):
    """Graphs without a GPU."""

    num_replays = 0

    def _capture_all(self) -> None:
        shapes = self._buckets.shapes()
        self._graphs = {shape: Replay(self, shape, ReplayingLauncher._step) for shape in shapes}  # type: ignore[misc]
        rows = [shape.num_rows for shape in shapes if shape.all_decode]
        self._heads = {count: Replay(self, count, ReplayingLauncher._head) for count in rows}  # type: ignore[misc]


@pytest.mark.parametrize("name", ["qwen3", "mistral"])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("stages", [1, 2, 3])
def test_tokens_are_those_of_transformers_through_the_gpus_launchers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, graphs: bool, stages: int
) -> None:
    made: list[EagerLauncher] = []

    def launcher(builder: Any, num_blocks: int, agree: object) -> Launcher:
        kind = ReplayingLauncher if graphs else OnCpu
        builder.module.bind_cache(builder._cache(num_blocks + 1))
        if builder.is_last:
            tokens = torch.zeros(NUM_SAMPLED, builder.limits.max_num_seqs, dtype=torch.int64)
            builder.exchange = replace(builder.exchange, sampled=Ring(tokens), host_sampled=tokens.clone())
        made.append(kind(builder.module, torch.device("cpu"), builder.limits, num_blocks, builder.exchange))
        return made[-1]

    monkeypatch.setattr(stage._StageBuilder, "launcher", launcher)
    model = write_tiny_model(tmp_path, name)
    model_config = read_model_config(tmp_path)
    scene = scenario(3, model_config.vocab_size)
    limits = {"block_size": 8, "max_model_len": 64, "max_num_seqs": 24, "max_num_batched_tokens": 16}
    config = EngineConfig(model=str(tmp_path), pipeline_parallel_size=stages, dtype="float32", device="cpu", **limits)
    driver = start_in_process(config, model_config, Scheduler(scheduler_config(config, model_config, 15)), 15)
    outcome = play(driver, scene)
    driver.close()
    expected = expected_tokens(model, scene.finished)
    assert [outcome.tokens[f"r{i}"] for i in range(len(expected))] == expected
    assert not graphs or all(each.num_replays for each in made if isinstance(each, ReplayingLauncher))
