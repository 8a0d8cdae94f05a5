"""Two raylets on one host: stages on different nodes, sockets over TCP with CURVE, a stage's ranks together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from penstock.actors.cluster import this_place
from penstock.actors.engine import start_engine
from penstock.configs.engine import EngineConfig
from penstock.errors import ClusterError

from .rig import Answers, fake_output, request

FAKE = "penstock.tests.actors.fake_stage:build"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[None]:
    arguments = {"num_cpus": 3, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=arguments)
    cluster.add_node(num_cpus=3, object_store_memory=80_000_000)
    ray.init(address=cluster.address, namespace="penstock", log_to_driver=False)
    yield
    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]


def config(folder: str, num_stages: int, tp_size: int, **settings: str) -> EngineConfig:
    sizes = {"pipeline_parallel_size": num_stages, "tensor_parallel_size": tp_size}
    return EngineConfig(model=folder, device="cpu", dtype="float32", max_num_seqs=16, **sizes, **settings)


def test_an_engine_spans_two_nodes(two_nodes: None, tiny_folder: str) -> None:
    with start_engine(config(tiny_folder, 2, 2), stage_builder=FAKE) as handle:
        nodes = [worker["node"] for worker in handle.stats()["workers"]]
        assert nodes[0] == nodes[1] != nodes[2] == nodes[3]
        client, answers = handle.client(), Answers()
        for i in range(8):
            client.submit(request(f"r{i}", num_prompt=3 + i, max_tokens=6), answers)
        answers.wait(8)
        assert all(answers.tokens[f"r{i}"] == fake_output(3 + i, 6) for i in range(8))


def test_an_engine_is_where_its_starter_is(two_nodes: None, tiny_folder: str) -> None:
    for _ in range(4):  # any node would do for an actor without resources
        with start_engine(config(tiny_folder, 1, 1), stage_builder=FAKE) as handle:
            assert handle._info.peer.node == this_place().node


def test_a_stage_that_fits_no_single_node_is_refused(two_nodes: None, tiny_folder: str) -> None:
    with pytest.raises(ClusterError, match="a stage's 4 CPUs must be on one node, but the largest has 3"):
        start_engine(config(tiny_folder, 1, 4), stage_builder=FAKE)


def test_ipc_across_nodes_is_refused_in_words(two_nodes: None, tiny_folder: str) -> None:
    with pytest.raises(ClusterError, match="transport 'ipc' can't join node"):
        start_engine(config(tiny_folder, 2, 2, transport="ipc"), stage_builder=FAKE)
