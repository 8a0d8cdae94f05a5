"""What an engine asks of the cluster, and what it says when that isn't there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import ray
import torch

from penstock.actors import placement
from penstock.actors.llm import LLM
from penstock.configs.engine import EngineConfig
from penstock.errors import ClusterError, ConfigError

SLOW_S = 30.0  # for Ray, or for a worker with torch, to come up on a busy machine


def config(num_stages: int, tp_size: int) -> EngineConfig:
    return EngineConfig(pipeline_parallel_size=num_stages, tensor_parallel_size=tp_size)


def test_a_bundle_for_each_stage_holds_its_ranks() -> None:
    assert placement.stage_bundles(config(3, 2), "cpu") == [{"CPU": 2.0}] * 3
    assert placement.stage_bundles(config(1, 4), "cuda") == [{"CPU": 4.0, "GPU": 4.0}]


def test_auto_is_cuda_where_the_cluster_has_gpus() -> None:
    assert placement.resolve_device(config(1, 1), {"CPU": 8.0, "GPU": 2.0}) == "cuda"
    assert placement.resolve_device(config(1, 1), {"CPU": 8.0}) == "cpu"
    assert placement.resolve_device(EngineConfig(device="cpu"), {"GPU": 2.0}) == "cpu"


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([{"CPU": 2.0}], r"asks for 4 CPUs \(2 stages of 2 ranks\); the Ray cluster has 2 CPUs in all, 2 are missing"),
        ([{"CPU": 1.0}] * 4, "a stage's 2 CPUs must be on one node, but the largest has 1"),
    ],
)
def test_what_the_cluster_can_never_give_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]], message: str
) -> None:
    monkeypatch.setattr(placement, "node_resources", lambda: nodes)
    monkeypatch.setattr(placement, "total_resources", lambda: {"CPU": sum(node["CPU"] for node in nodes)})
    with pytest.raises(ClusterError, match=message):
        placement.reserve("e", config(2, 2), "cpu")


def test_missing_gpus_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "total_resources", lambda: {"CPU": 8.0})
    with pytest.raises(ClusterError, match="has 8 CPUs in all and the Ray cluster has 0 GPUs in all, 2 are missing"):
        placement.reserve("e", config(2, 1), "cuda")


def test_a_command_that_finds_no_gpu_ends_with_one_line() -> None:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "penstock", "generate", "--device", "cuda"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SLOW_S, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("penstock: ")]
    assert (done.returncode, done.stdout, len(said)) == (1, "", 2), done.stderr
    assert said[0].startswith("penstock: started a local Ray cluster (")
    assert said[1].startswith("penstock: the engine asks for 1 CPUs and 1 GPUs (1 stages of 1 ranks); ")
    assert said[1].endswith("the Ray cluster has 0 GPUs in all, 1 are missing")
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A cluster that says it has two GPUs, which this process is in."""
    ray.init(
        address="local",
        num_cpus=8,
        num_gpus=2,
        object_store_memory=80_000_000,
        include_dashboard=False,
        log_to_driver=False,
        namespace="penstock",
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(("stages", "ranks"), [(3, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_fewer_gpus_than_ranks_are_told_in_one_line_at_once(stages: int, ranks: int, device: str) -> None:
    began_s, world = time.monotonic(), stages * ranks
    with pytest.raises(ClusterError) as caught:
        LLM("demo", device=device, pipeline_parallel_size=stages, tensor_parallel_size=ranks)
    assert str(caught.value) == (
        f"the engine asks for {world} CPUs and {world} GPUs ({stages} stages of {ranks} ranks); "
        f"the Ray cluster has 8 CPUs in all and the Ray cluster has 2 GPUs in all, {world - 2} are missing"
    )
    assert time.monotonic() - began_s < SLOW_S


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use this machine's GPU")
@pytest.mark.parametrize("stages", [1, 2])
def test_a_gpu_that_torch_cannot_use_is_told_in_one_line_with_its_reason(stages: int) -> None:
    began_s = time.monotonic()
    with pytest.raises(ConfigError, match=r"^device is 'cuda', but torch finds no usable GPU: [^\n]+$"):
        LLM("demo", device="cuda", pipeline_parallel_size=stages)
    assert time.monotonic() - began_s < SLOW_S
