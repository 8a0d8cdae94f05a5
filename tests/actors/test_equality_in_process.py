"""Token for token what transformers gives: families x stages x ranks x async x prefix caching, in one process.

Each case is the whole scenario of `reference`: chunked prompts, shared prefixes, late arrivals, aborts, and in half of
the cases a cache so small that sequences are preempted. `make test` takes one of the four settings of async and prefix
caching for each (family, stages, ranks), `make test-all` all four.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.scheduler.scheduler import Scheduler

from ..model.tiny import TINY_MODELS, write_tiny_model
from .reference import Scenario, expected_tokens, play, scenario

PARTITIONS = {1: None, 2: None, 3: "uneven", 4: None}
counts = {"cases": 0, "preempted": 0}


@dataclass
class Family:
    folder: Path
    scene: Scenario
    expected: list[list[int]]
    num_layers: int
    can_split: bool


@pytest.fixture(scope="module", params=list(TINY_MODELS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    shape = TINY_MODELS[request.param]
    model = write_tiny_model(folder, request.param)
    scene = scenario(len(request.param), read_model_config(folder).vocab_size)
    return Family(folder, scene, expected_tokens(model, scene.finished), shape.num_layers, shape.num_heads % 2 == 0)


@pytest.mark.parametrize("stages", PARTITIONS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_greedy_tokens_equal_those_of_transformers(family: Family, stages: int, ranks: int) -> None:
    async_on, prefix_on = list(itertools.product((True, False), repeat=2))[(stages + 2 * ranks) % 4]
    run_one(family, stages, ranks, async_on, prefix_on)


@pytest.mark.slow
@pytest.mark.parametrize("stages", PARTITIONS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_greedy_tokens_equal_those_of_transformers_in_the_full_cross(family: Family, stages: int, ranks: int) -> None:
    for async_on, prefix_on in itertools.product((True, False), repeat=2):
        run_one(family, stages, ranks, async_on, prefix_on)


def run_one(family: Family, stages: int, ranks: int, async_on: bool, prefix_on: bool) -> None:
    small_cache = async_on == prefix_on
    config = EngineConfig(
        model=str(family.folder),
        pipeline_parallel_size=stages,
        tensor_parallel_size=ranks,
        pipeline_layer_partition=uneven(family.num_layers, stages),
        dtype="float32",
        device="cpu",
        block_size=8,
        max_model_len=64,
        max_num_seqs=24,
        max_num_batched_tokens=16,
        async_scheduling=async_on,
        enable_prefix_caching=prefix_on,
    )
    check_case(family, config, num_blocks=15 if small_cache else 80)


def uneven(num_layers: int, stages: int) -> list[float] | None:
    return [1.5, num_layers - 3, 1.5] if stages == 3 else None


def check_case(family: Family, config: EngineConfig, num_blocks: int) -> None:
    model_config = read_model_config(family.folder)
    scheduler = Scheduler(scheduler_config(config, model_config, num_blocks))
    driver = start_in_process(config, model_config, scheduler, num_blocks)
    outcome = play(driver, family.scene)
    driver.close()
    for i, tokens in enumerate(family.expected):
        assert outcome.tokens[f"r{i}"] == tokens, f"prompt {i} of {config}"
    assert [outcome.reasons[f"r{i}"] for i in range(len(family.scene.prompts))] == ["length"] * 8 + ["abort"] * 2
    counts["cases"] += 1
    counts["preempted"] += outcome.preemptions > 0


def test_the_cross_was_run_and_preempted_often(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\nequality in one process: {counts['cases']} cases, {counts['preempted']} of them with preemptions")
    assert counts["preempted"] >= counts["cases"] // 4
