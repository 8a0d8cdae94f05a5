"""A server that can't start says why in one line, and leaves nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from penstock import cli
from penstock.actors import placement
from penstock.actors import server as module
from penstock.actors.cluster import Cluster
from penstock.actors.server import Server
from penstock.configs.load import load_configs
from penstock.errors import ClusterError, EngineDeadError

from ..head import free_ports, is_free
from ..rig import eventually
from .live_server import live_server

TRACE = """\
The deployment failed to start 1 times in a row. This may be due to a problem with its constructor. Error:
ray::ServeReplica:app:x.initialize_and_get_metadata() (pid=14046, ip=192.0.2.2)
  File "replica.py", line 1928, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "engine.py", line 7, in __init__
    raise error
{raised}"""


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (TRACE.format(raised="penstock.errors.ClusterError: the engine asks for 4 CPUs: 2 are missing"), "the engine "),
        (TRACE.format(raised="ValueError: no such thing"), "ValueError: no such thing"),
        ("There are no nodes that fit.\n", "Deploying failed. There are no nodes that fit."),
    ],
)
def test_the_reason_is_what_a_constructor_raised_else_what_serve_says(
    monkeypatch: pytest.MonkeyPatch, told: str, reason: str
) -> None:
    application = SimpleNamespace(deployments={"x": SimpleNamespace(message=told)})
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={"app": application}))
    said = module._reason("app", "Deploying failed.")
    assert said.startswith(reason)
    assert "\n" not in said


def test_a_wrong_key_ends_the_command_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text("model: demo\nnum_replica: 2\n")
    assert cli.main(["serve", str(tmp_path / "wrong.yaml")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "num_replica" in line
    assert "num_replicas" in line.partition("num_replica")[2], "the nearest key is named"


def test_a_cluster_too_small_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (module, placement):
        monkeypatch.setattr(each, "total_resources", lambda: {"CPU": 16.0})
    monkeypatch.setattr(module, "ensure_ray", lambda *_, **__: Cluster("a cluster"))
    settings: dict[str, Any] = {"pipeline_parallel_size": 4, "num_replicas": 5, "port": free_ports(1)[0]}
    match = r"5 replicas: the engine asks for 4 CPUs .* each; the Ray cluster has 16 CPUs in all, 4 are missing"
    with pytest.raises(ClusterError, match=match), Server(*load_configs("demo", **settings)):
        pass
    assert not ray.is_initialized()


@pytest.mark.slow
def test_what_keeps_an_engine_from_starting_is_told_and_nothing_stays(ray_cluster: str) -> None:
    (port,) = free_ports(1)
    match = r"the server can't start: 100000000 blocks of KV cache take .* GiB on a rank"
    with (
        pytest.raises(EngineDeadError, match=match),
        Server(*load_configs("demo", num_kv_blocks=100_000_000, port=port)),
    ):
        pass
    assert not ray.util.list_named_actors(all_namespaces=True)
    assert is_free(port)


@pytest.mark.slow
def test_a_signal_to_its_whole_group_takes_ray_first_and_ends_the_server_as_soon() -> None:
    with live_server() as server:  # which waits for its end, for so long
        os.killpg(server.pid, signal.SIGTERM)
    eventually(lambda: is_free(server.port))
