"""The whole pipeline on one GPU, all stages in this process: streams, events, FutureMap, graphs, links."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penstock.actors.in_process import start_in_process
from penstock.actors.scheduler_settings import scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.scheduler.messages import NewRequest
from penstock.scheduler.plan import Sampling, ints
from penstock.scheduler.scheduler import Scheduler

from ..actors.reference import expected_tokens, play, scenario
from ..model.tiny import write_tiny_model

QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 2,
}
NUM_BLOCKS = 512
DEVICE = "cuda"


@pytest.mark.parametrize("name", ["qwen3", "glm4", "mistral", "llama32"])
@pytest.mark.parametrize(
    ("stages", "eager", "num_blocks"), [(1, False, 12), (2, False, 40), (3, True, 12), (4, False, 12)]
)
def test_float32_tokens_are_those_of_transformers(
    tmp_path: Path, name: str, stages: int, eager: bool, num_blocks: int
) -> None:
    model = write_tiny_model(tmp_path, name)
    model_config = read_model_config(tmp_path)
    scene = scenario(len(name), model_config.vocab_size)
    expected = expected_tokens(model, scene.finished)
    config = EngineConfig(
        model=str(tmp_path),
        pipeline_parallel_size=stages,
        dtype="float32",
        device=DEVICE,
        block_size=16,
        max_model_len=64,
        max_num_seqs=24,
        max_num_batched_tokens=16,
        enforce_eager=eager,
    )
    driver = start_in_process(
        config, model_config, Scheduler(scheduler_config(config, model_config, num_blocks)), num_blocks
    )
    outcome = play(driver, scene)
    driver.close()
    assert [outcome.tokens[f"r{i}"] for i in range(len(expected))] == expected


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide")
    (path / "config.json").write_text(json.dumps(QWEN3))
    return path


def tokens(
    folder: Path, plans_for: int = 1, num_requests: int = 16, length: int = 48, **settings: Any
) -> list[list[int]]:
    """Greedy tokens of equally long requests that come at once, under the plans of a pipeline of `plans_for` stages."""
    model_config = read_model_config(folder)
    common = {"model": str(folder), "load_format": "dummy", "device": DEVICE, "max_num_seqs": 64, "max_model_len": 1024}
    config = EngineConfig(**(common | settings))
    planner = EngineConfig(**(common | settings | {"pipeline_parallel_size": plans_for}))
    scheduler = Scheduler(scheduler_config(planner, model_config, NUM_BLOCKS))
    driver = start_in_process(config, model_config, scheduler, NUM_BLOCKS)
    rng = np.random.default_rng(0)
    for i in range(num_requests):
        prompt = ints(rng.integers(3, 30000, 40).tolist())
        driver.scheduler.add_request(NewRequest(str(i), prompt, length, Sampling(), ignore_eos=True))
    answers: list[list[int]] = [[] for _ in range(num_requests)]
    for event in driver.run():
        answers[int(event.request_id)] += event.token_ids.tolist()
    totals = [rank.timeline.totals for rank in driver.ranks]
    driver.close()
    for stage in totals:
        assert 0.0 < stage.busy_share <= 1.0, stage
        idle = sum(stage.wait_ns.values()) + stage.busy_ns
        assert idle <= 1.02 * (stage.last_end_ns - stage.first_start_ns), stage
    print(f"\n{settings}: " + "; ".join(f"busy {s.busy_share:.0%}, waits {s.wait_ns}" for s in totals))
    assert all(len(answer) == length for answer in answers)
    return answers


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "graphs"])
@pytest.mark.parametrize(("stages", "is_async"), [(2, True), (4, True), (4, False)])
def test_bf16_tokens_of_several_stages_are_those_of_one_under_the_same_plans(
    folder: Path, stages: int, is_async: bool, eager: bool
) -> None:
    settings = {"plans_for": stages, "async_scheduling": is_async, "enforce_eager": eager, "max_num_seqs": 16}
    one = tokens(folder, **settings)
    assert tokens(folder, **settings, pipeline_parallel_size=stages) == one
    assert len({tuple(answer) for answer in one}) == len(one), "the answers say nothing: they are all alike"


def test_bf16_tokens_with_graphs_and_with_async_scheduling_are_those_without(folder: Path) -> None:
    plain = tokens(folder, enforce_eager=True, async_scheduling=False)
    assert tokens(folder, enforce_eager=True, async_scheduling=True) == plain
    assert tokens(folder, enforce_eager=False, async_scheduling=True) == plain
