"""A real `ray start --head` with a dashboard, apart from every other cluster of the machine, and its jobs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from .rig import eventually

BIN = Path(sys.executable).parent
_START_S = 60.0


@dataclass(frozen=True)
class Head:
    """A head node, as its users know it."""

    address: str
    dashboard: str

    @property
    def env(self) -> dict[str, str]:
        """For processes that this cluster is meant for."""
        return os.environ | {"RAY_ADDRESS": self.address, "RAY_API_SERVER_ADDRESS": self.dashboard}

    def jobs(self) -> JobSubmissionClient:
        """The job API; Ray's dashboard resets connections now and then while its modules load."""
        for _ in range(20):
            with suppress(ConnectionError):
                return JobSubmissionClient(self.dashboard)
            time.sleep(0.5)
        return JobSubmissionClient(self.dashboard)


@contextmanager
def ray_head(num_cpus: int) -> Iterator[Head]:
    """Ends it by its own process, which takes everything along."""
    port, dashboard, client, agent = free_ports(4)
    folder = tempfile.mkdtemp(prefix="psh")
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block", f"--port={port}", f"--num-cpus={num_cpus}"),
        *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}", f"--temp-dir={folder}"),
        *(f"--dashboard-agent-listen-port={agent}", "--object-store-memory=80000000"),
        *("--node-ip-address=127.0.0.1", "--disable-usage-stats"),
    ]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    with ExitStack() as ends:
        ends.callback(shutil.rmtree, folder, ignore_errors=True)
        log = ends.enter_context(open(Path(folder) / "head.log", "w"))
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        ends.callback(_end, process)
        url = f"http://127.0.0.1:{dashboard}"
        eventually(lambda: process.poll() is None and http_status(f"{url}/api/version") == 200, _START_S)
        yield Head(f"127.0.0.1:{port}", url)


def _end(process: subprocess.Popen[Any]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as held:
        bound = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in bound]


def http_status(url: str) -> int | None:
    """The status that a GET is answered with; None without an answer."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def is_free(port: int) -> bool:
    """Whether somebody could listen there."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def wait_for_job(client: JobSubmissionClient, job_id: str, timeout_s: float = 60.0) -> JobStatus:
    """The status in which it ended."""
    eventually(lambda: client.get_job_status(job_id).is_terminal(), timeout_s)
    return client.get_job_status(job_id)
