"""Serving and batches as Ray jobs in a real cluster, and servers that join it: they work, speak, and leave nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray.job_submission import JobStatus
from ray.util.state import list_actors

from penstock.actors.cluster import free_resources
from penstock.actors.engine import find_engine

from ..test_architecture import FILES, ROOT
from .head import BIN, Head, free_ports, http_status, is_free, ray_head, wait_for_job
from .rig import eventually
from .test_endings import alive

NUM_CPUS = 6
SETTINGS = """\
model: demo
pipeline_parallel_size: 2
num_kv_blocks: 256
app_name: from-a-job
port: {port}
drain_timeout_s: 2
"""
ASK = """\
import asyncio, sys
import penstock

async def main() -> None:
    engine = penstock.connect(sys.argv[1])
    async for output in engine.generate("17 + 25 =", penstock.SamplingParams(temperature=0, max_tokens=8)):
        if output.finished:
            print("job said:" + output.outputs[0].text)

asyncio.run(main())
"""
PROMPTS = [{"id": f"p{a}", "prompt": f"{a} + 25 ="} for a in range(11, 31)]

ACTORS_LINES = ["stage 0 rank 0 (pid", "stage 1 rank 0 (pid", "serves: 2 stages of 1 ranks"]
REQUESTS_LINE = "/v1/completions"  # of the replica


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head(NUM_CPUS) as made:
        ray.init(address=made.address, namespace="penstock", log_to_driver=False)
        yield made
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The jobs' working directory: settings and prompts."""
    made = tmp_path_factory.mktemp("work")
    (made / "settings.yaml").write_text(SETTINGS.format(port=free_ports(1)[0]))
    (made / "ask.py").write_text(ASK)
    (made / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in PROMPTS))
    return made


@pytest.fixture(scope="module")
def serving(head: Head, folder: Path) -> str:
    """A job that serves, or is about to."""
    return submit(head, folder, "penstock serve settings.yaml")


def port_of(folder: Path) -> int:
    return int((folder / "settings.yaml").read_text().partition("port: ")[2].split()[0])


def finished(head: Head, job_id: str) -> str:
    """The logs of a job that has succeeded."""
    status = wait_for_job(head.jobs(), job_id)
    logs = str(head.jobs().get_job_logs(job_id))
    assert status is JobStatus.SUCCEEDED, logs
    return logs


def submit(head: Head, folder: Path, command: str) -> str:
    return head.jobs().submit_job(entrypoint=command, runtime_env={"working_dir": str(folder)})


def wait_until_served(head: Head, job_id: str, port: int) -> None:
    def is_served() -> bool:
        assert not head.jobs().get_job_status(job_id).is_terminal(), head.jobs().get_job_logs(job_id)
        return http_status(f"http://127.0.0.1:{port}/health") == 200

    eventually(is_served, timeout_s=60)


def completion(port: int, **more: Any) -> str:
    body = {"model": "demo", "prompt": "17 + 25 =", "temperature": 0, "max_tokens": 8} | more
    response = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=30)
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


@contextmanager
def stream(port: int) -> Iterator[None]:
    """A client in the middle of a long answer."""
    body = {"model": "demo", "prompt": "a", "max_tokens": 450, "ignore_eos": True, "stream": True, "n": 8}
    url = f"http://127.0.0.1:{port}/v1/completions"
    with httpx.stream("POST", url, json=body, timeout=60) as response:
        assert next(response.iter_text()).startswith("data: ")
        yield


def engines(app_name: str) -> list[str]:
    names = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    return [name for name in names if name.startswith(f"{app_name}-")]


def engine_pids(app_name: str) -> set[int]:
    """The processes of the engine behind an application."""
    (name,) = engines(app_name)
    handle = find_engine(name, "auto")
    try:
        return set(handle.pids)
    finally:
        handle.shutdown()


def actors_left(head: Head) -> set[str]:
    living = list_actors(head.dashboard, filters=[("state", "=", "ALIVE")])
    return {f"{actor.name} {actor.class_name}" for actor in living}


def groups_left() -> set[str]:
    return {group["name"] for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"}


def test_a_job_answers_a_file(head: Head, folder: Path, serving: str) -> None:
    answered = folder / "answers.jsonl"
    command = f"penstock generate settings.yaml --input prompts.jsonl --output {answered}"
    logs = finished(head, submit(head, folder, command))
    texts = [json.loads(line)["outputs"][0]["text"] for line in answered.read_text().splitlines()]
    assert [text.strip() for text in texts] == [str(a + 25) for a in range(11, 31)]
    assert "20 of 20 answers are in" in logs
    for line in ACTORS_LINES:
        assert line in logs


def test_a_server_that_is_killed_leaves_nothing_and_others_alone(head: Head, folder: Path, serving: str) -> None:
    wait_until_served(head, serving, port_of(folder))  # it has started Serve
    (port,) = free_ports(1)
    flags = ["--app-name", "killed", "--port", str(port), "--num-kv-blocks", "256", "--drain-timeout-s", "0.5"]
    with subprocess.Popen([BIN / "penstock", "serve", *flags], env=head.env, stderr=subprocess.DEVNULL) as server:
        eventually(lambda: http_status(f"http://127.0.0.1:{port}/health") == 200, timeout_s=60)
        pids = engine_pids("killed")
        with stream(port):
            server.kill()
            eventually(lambda: not alive(pids) and is_free(port), timeout_s=20)
    eventually(lambda: not [name for name in actors_left(head) if "killed" in name])
    assert completion(port_of(folder)) == " 42"


@pytest.mark.slow
def test_a_job_talks_to_an_engine_that_another_job_serves(head: Head, folder: Path, serving: str) -> None:
    wait_until_served(head, serving, port_of(folder))
    assert "job said: 42" in finished(head, submit(head, folder, "python ask.py from-a-job"))


def test_a_stopped_job_leaves_nothing(head: Head, folder: Path, serving: str) -> None:
    port, jobs = port_of(folder), head.jobs()
    pids = engine_pids("from-a-job")
    assert len(pids) == 3
    with stream(port):
        assert jobs.stop_job(serving)
        assert wait_for_job(jobs, serving) is JobStatus.STOPPED
        eventually(lambda: not actors_left(head) and not groups_left(), timeout_s=20)
    eventually(lambda: is_free(port) and not alive(pids) and free_resources()["CPU"] == NUM_CPUS)
    logs = jobs.get_job_logs(serving)
    for line in [*ACTORS_LINES, "serves demo at http://127.0.0.1", REQUESTS_LINE]:
        assert line in logs, f"{line!r} is not in\n{logs}"


WITH_PIP = """\
working_dir: .
pip:
  packages: ["${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"]
  pip_check: false
"""
WITH_WHEEL = """\
working_dir: .
py_modules: [WHEEL]
"""
FIND = "import penstock; print('job runs', penstock.__file__)"


def build_wheel(checkout: Path, target: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(checkout)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = target.glob("*.whl")
    return built


@pytest.mark.slow
@pytest.mark.parametrize("way", ["pip", "wheel"])
def test_a_job_brings_penstock_along(head: Head, folder: Path, tmp_path: Path, way: str) -> None:
    checkout = tmp_path / "checkout"
    for path in FILES:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, checkout / path)
    work, text = (checkout, WITH_PIP) if way == "pip" else (tmp_path / "work", WITH_WHEEL)
    work.mkdir(exist_ok=True)
    (work / "job.yaml").write_text(
        text.replace("WHEEL", str(build_wheel(checkout, tmp_path)) if way == "wheel" else "")
    )
    for name in ("settings.yaml", "prompts.jsonl"):
        shutil.copy(folder / name, work)
    answered = tmp_path / "answers.jsonl"
    generate = f"python -m penstock generate settings.yaml --input prompts.jsonl --output {answered}"
    entry = ["--", "sh", "-c", f'python -c "{FIND}" && {generate}']
    command = [str(BIN / "ray"), "job", "submit", "--runtime-env", "job.yaml", *entry]
    done = subprocess.run(command, cwd=work, env=head.env, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (where,) = (line for line in done.stdout.splitlines() if line.startswith("job runs"))
    assert str(ROOT) not in where
    for line in ACTORS_LINES:
        assert line in done.stdout
    assert len(answered.read_text().splitlines()) == len(PROMPTS)
