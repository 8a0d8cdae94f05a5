"""However its owner ends, an engine leaves no process, socket file, placement group or named actor."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray

from penstock.actors.cluster import free_resources

from .rig import eventually, heed_ctrl_c

COMMAND = [sys.executable, "-m", "penstock.tests.actors.driver"]


@contextmanager
def driver(folder: str, settings: dict[str, Any], env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A running driver in a process group of its own, and what it said."""
    with subprocess.Popen(
        [*COMMAND, folder, json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
        env=os.environ | env,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def descendants(pid: int) -> set[int]:
    """All processes below this one."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = set[int](), [pid]
    while todo:
        children = parents.get(todo.pop(), [])
        found.update(children)
        todo += children
    return found


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if os.path.exists(f"/proc/{pid}") and state_of(pid) != "Z"}


def state_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_driver_that_started_its_cluster_takes_it_along(tiny_folder: str, end: signal.Signals) -> None:
    with driver(tiny_folder, {}, {"RAY_ADDRESS": ""}) as (process, said):
        below = descendants(process.pid)
        assert set(said["pids"]) <= below
        os.killpg(process.pid, end)
        process.wait(timeout=30)
        eventually(lambda: not alive(below), timeout_s=20)
    assert not [folder for pid in said["pids"] for folder in glob.glob(f"{tempfile.gettempdir()}/ps-{pid}-*")]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_that_joined_a_cluster_leaves_nothing_in_it(
    ray_cluster: str, tiny_folder: str, end: signal.Signals
) -> None:
    with driver(tiny_folder, {"name": f"ends-by-{end}"}, {"RAY_ADDRESS": ray_cluster}) as (process, said):
        os.killpg(process.pid, end)
        process.wait(timeout=30)
        eventually(lambda: not alive(set(said["pids"])), timeout_s=20)
    assert said["name"] not in {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    groups = ray.util.placement_group_table().values()
    eventually(lambda: {g["state"] for g in groups if g["name"] == f"penstock-{said['name']}"} <= {"REMOVED"})
    eventually(lambda: free_resources()["CPU"] == 16)
    assert not [folder for pid in said["pids"] for folder in glob.glob(f"{tempfile.gettempdir()}/ps-{pid}-*")]


@pytest.mark.parametrize("ends_normally", [True, False])
def test_a_detached_engine_outlives_its_driver(ray_cluster: str, tiny_folder: str, ends_normally: bool) -> None:
    from penstock.actors.engine import find_engine

    with driver(tiny_folder, {"name": "stays", "detached": True}, {"RAY_ADDRESS": ray_cluster}) as (process, said):
        if ends_normally:
            process.communicate(timeout=30)  # what it waits for is the end of its input
        else:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(timeout=30) == (0 if ends_normally else -signal.SIGKILL)
    found = find_engine("stays")
    assert alive(set(said["pids"])) == set(said["pids"])
    assert found.stats()["failure"] is None
    found.end_engine()
    eventually(lambda: not alive(set(said["pids"])))
