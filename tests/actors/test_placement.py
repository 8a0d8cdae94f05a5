"""What an engine asks of the cluster, and what it says when that isn't there."""

from __future__ import annotations

import pytest

from penstock.actors import placement
from penstock.configs.engine import EngineConfig
from penstock.errors import ClusterError


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
