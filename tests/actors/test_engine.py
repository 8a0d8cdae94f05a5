"""Engines over real actors: they serve, fail with a reason, and leave nothing behind."""

from __future__ import annotations

import gc
import glob
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgpack
import pytest
import ray

from penstock.actors.engine import EngineHandle, find_engine, start_engine
from penstock.configs.engine import EngineConfig
from penstock.errors import ClusterError, ConfigError, EngineDeadError, EngineNotFoundError, RequestError
from penstock.model.layer_span import LayerSpan
from penstock.scheduler.record import replay

from .rig import Answers, eventually, fake_output, request

pytestmark = pytest.mark.usefixtures("ray_cluster")

FAKE = "penstock.tests.actors.fake_stage:build"


def start(tiny_folder: str, builder: str = FAKE, **settings: Any) -> EngineHandle:
    values = {"model": tiny_folder, "load_format": "dummy", "dtype": "float32", "device": "cpu", "max_num_seqs": 16}
    return start_engine(EngineConfig(**(values | settings)), stage_builder=builder)


def serve(handle: EngineHandle, num_requests: int = 8) -> Answers:
    client, answers = handle.client(), Answers()
    for i in range(num_requests):
        client.submit(request(f"r{i}", num_prompt=3 + i, max_tokens=6), answers)
    answers.wait(num_requests)
    client.close()
    return answers


def gone(pids: list[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def assert_nothing_is_left(name: str, pids: list[int]) -> None:
    eventually(lambda: gone(pids))
    assert name not in {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    groups = ray.util.placement_group_table().values()
    assert {g["state"] for g in groups if g["name"] == f"penstock-{name}"} <= {"REMOVED"}
    assert not [folder for pid in pids for folder in glob.glob(f"{tempfile.gettempdir()}/ps-{pid}-*")]


@pytest.fixture(scope="module")
def shared(ray_cluster: None, tiny_folder: str) -> Iterator[EngineHandle]:
    """An engine of two fake stages for the tests that do it no harm."""
    with start(tiny_folder, pipeline_parallel_size=2, name="shared") as handle:
        yield handle


def test_an_engine_serves_and_shutdown_leaves_nothing(tiny_folder: str) -> None:
    with start(tiny_folder, pipeline_parallel_size=2, tensor_parallel_size=2, transport="tcp") as handle:
        answers = serve(handle)
        assert all(answers.tokens[f"r{i}"] == fake_output(3 + i, 6) for i in range(8))
        stages = handle.stats()["stages"]
        assert len(stages) == 2
        assert len(set(handle.pids)) == 5
    assert_nothing_is_left(handle.name, handle.pids)


def test_the_engines_collections_go_through_what_came_since_its_start(shared: EngineHandle) -> None:
    seen, frozen = ray.get(shared._actor.__ray_call__.remote(lambda _: (len(gc.get_objects()), gc.get_freeze_count())))
    assert seen < frozen / 10


def test_real_stages_answer_alike_however_they_are_cut_and_a_run_is_recorded(tiny_folder: str, tmp_path: Path) -> None:
    trace, record = tmp_path / "run.json", tmp_path / "run.record"
    builder = "penstock.model.stage:build_stage"
    with start(tiny_folder, builder) as handle:
        whole = serve(handle)
    files = {"trace": str(trace), "record": str(record)}
    with start(tiny_folder, builder, pipeline_parallel_size=3, **files) as handle:
        cut = serve(handle)
        assert [stage["steps"] > 0 for stage in handle.stats()["stages"]] == [True] * 3
    assert cut.tokens == whole.tokens
    assert "stage 2 rank 0" in trace.read_text()
    report = replay(record)
    assert report.num_plans > 6
    assert report.difference is None


def test_what_stages_have_and_measure_reaches_the_engine_and_the_slowest_is_planned_for(
    tiny_folder: str, tmp_path: Path
) -> None:
    builder, record = "penstock.tests.actors.fake_stage:build_measured", tmp_path / "run.record"
    settings = {"pipeline_layer_partition": [5, 3], "num_kv_blocks": 20, "record": str(record)}
    with start(tiny_folder, builder, pipeline_parallel_size=2, **settings) as handle:
        serve(handle)
        first, last = handle.stages
        assert (first.span, last.span) == tuple(LayerSpan.in_turn([5, 3]))
        assert (first.num_blocks, first.cache_bytes) == (20, 20 * 5 * 2 * 16 * 2 * 16 * 4)
        assert (first.bytes_per_s, first.flops_per_s) == (4e12, 6e14)
        assert first.weight_bytes > last.weight_bytes > 0
        assert first.step_cost is not None
        assert last.step_cost is not None
    with record.open("rb") as file:
        header = next(msgpack.Unpacker(file, raw=False))
    assert header[2]["step_cost"]["overhead_s"] == last.step_cost.overhead_s > first.step_cost.overhead_s
    assert replay(record).difference is None


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_hung_worker_fails_the_requests_within_5_s(tiny_folder: str, end: signal.Signals) -> None:
    with start(tiny_folder, pipeline_parallel_size=2) as handle:
        client, answers = handle.client(), Answers()
        client.submit(request("a", max_tokens=400), answers)
        answers.wait_for_tokens("a")
        victim = handle.stats()["stages"][1]["pid"]
        began = time.monotonic()
        os.kill(victim, end)
        answers.wait(1, timeout_s=5.0)
        assert time.monotonic() - began < 5.0
        assert f"stage 1 rank 0 (pid {victim}) sent no heartbeat" in (answers.ends["a"].error or "")
        eventually(lambda: client.is_dead)
        with pytest.raises(EngineDeadError, match="stage 1 rank 0"):
            client.submit(request("b"), answers)
        workers = [stage["pid"] for stage in handle.stats()["stages"]]
        eventually(lambda: gone(workers))
    assert_nothing_is_left(handle.name, handle.pids)


def test_a_stage_that_raises_fails_the_requests_with_its_words(tiny_folder: str) -> None:
    with start(tiny_folder, "penstock.tests.actors.fake_stage:build_breaking", pipeline_parallel_size=2) as handle:
        client, answers = handle.client(), Answers()
        client.submit(request("a", max_tokens=400), answers)
        answers.wait(1, timeout_s=5.0)
        assert "ValueError: step 3 is one too many" in (answers.ends["a"].error or "")


def test_a_killed_engine_is_noticed_by_its_client(tiny_folder: str) -> None:
    with start(tiny_folder) as handle:
        client, answers = handle.client(), Answers()
        client.submit(request("a", max_tokens=400), answers)
        answers.wait_for_tokens("a")
        scheduler = max(set(handle.pids) - {stage["pid"] for stage in handle.stats()["stages"]})
        os.kill(scheduler, signal.SIGKILL)
        answers.wait(1, timeout_s=2.0)
        assert "its connection is broken" in (answers.ends["a"].error or "")
        with pytest.raises(EngineDeadError):
            handle.stats()
    assert_nothing_is_left(handle.name, handle.pids)


def test_what_keeps_a_stage_from_starting_is_told_in_its_own_words(tiny_folder: str) -> None:
    with pytest.raises(ConfigError, match=r"^tensor_parallel_size 3 doesn't divide the model's 4"):
        start(tiny_folder, "penstock.model.stage:build_stage", tensor_parallel_size=3)
    with pytest.raises(EngineDeadError, match=r"^stage [01] rank 0: ValueError: no stage today$"):
        start(tiny_folder, "penstock.tests.actors.fake_stage:build_nothing", pipeline_parallel_size=2, name="broken")
    assert_nothing_is_left("broken", [])


def test_more_workers_than_the_cluster_has_are_refused_at_once(tiny_folder: str) -> None:
    with pytest.raises(
        ClusterError,
        match=r"asks for 24 CPUs \(8 stages of 3 ranks\); the Ray cluster has 16 CPUs in all, 8 are missing",
    ):
        start(tiny_folder, pipeline_parallel_size=8, tensor_parallel_size=3)


def test_a_full_cluster_is_waited_for_briefly(
    tiny_folder: str, shared: EngineHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with pytest.raises(ClusterError, match="the Ray cluster has 14 CPUs free, 2 are missing"):
        start(tiny_folder, pipeline_parallel_size=8, tensor_parallel_size=2, name="large")
    assert time.monotonic() - began < 20
    assert_nothing_is_left("large", [])


def test_two_engines_share_a_cluster_and_a_name_is_taken_once(tiny_folder: str, shared: EngineHandle) -> None:
    with pytest.raises(ClusterError, match="an engine named 'shared' already runs"):
        start(tiny_folder, name="shared")
    with start(tiny_folder) as other, ThreadPoolExecutor(2) as pool:
        for answers in pool.map(serve, (shared, other)):
            assert answers.tokens["r7"] == fake_output(10, 6)


def test_an_engine_is_found_by_name_and_left_running(shared: EngineHandle) -> None:
    with find_engine("shared") as found:
        assert found.config == shared.config
        assert serve(found).tokens["r0"] == fake_output(3, 6)
    assert serve(shared).tokens["r0"] == fake_output(3, 6)
    with pytest.raises(EngineNotFoundError, match=r"no engine named 'other' runs in the cluster; there are: .*shared"):
        find_engine("other")


def test_a_detached_engine_outlives_its_with_block_and_can_be_ended(tiny_folder: str) -> None:
    with start(tiny_folder, name="kept", detached=True) as handle:
        pass
    found = find_engine("kept")
    assert serve(found).tokens["r0"] == fake_output(3, 6)
    found.end_engine()
    assert_nothing_is_left("kept", handle.pids)


def test_shutdown_ends_a_detached_engine(tiny_folder: str) -> None:
    handle = start(tiny_folder, name="kept", detached=True)
    handle.shutdown()
    assert_nothing_is_left("kept", handle.pids)


def test_a_request_id_in_use_and_a_request_too_long_are_answered(shared: EngineHandle) -> None:
    client, answers = shared.client(), Answers()
    client.submit(request("a", num_prompt=600), answers)
    client.submit(request("b", max_tokens=300), answers)
    with pytest.raises(RequestError, match="'b' is already in use"):
        client.submit(request("b"), answers)
    client.abort("b")
    answers.wait(2)
    assert "600" in (answers.ends["a"].error or "")
    assert answers.ends["b"].finish_reason == "abort"
    client.close()


def test_closing_a_client_answers_what_is_open_and_aborts_it_in_the_engine(shared: EngineHandle) -> None:
    client, answers = shared.client(), Answers()
    client.submit(request("a", max_tokens=400), answers)
    client.close()
    assert answers.ends["a"].error == "the client was closed"
    eventually(lambda: shared.stats()["num_clients"] == 0 and shared.stats()["scheduler"]["running"] == 0)


def test_a_stopped_client_slows_nobody_and_gets_its_tokens_when_it_goes_on(
    shared: EngineHandle, ray_cluster: str
) -> None:
    command = [sys.executable, "-m", "penstock.tests.actors.stopped_client", "shared"]
    env = os.environ | {"RAY_ADDRESS": ray_cluster}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGSTOP)
        for _ in range(5):
            assert serve(shared).tokens["r7"] == fake_output(10, 6)
        eventually(lambda: shared.stats()["scheduler"]["running"] == 0, timeout_s=60)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "right\n"
