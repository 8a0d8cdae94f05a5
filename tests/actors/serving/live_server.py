"""A real `penstock serve` in processes of its own, seen from outside: its port, its figures, its processes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

START_TIMEOUT_S = 120.0
END_TIMEOUT_S = 30.0
_SAMPLE = re.compile(r"^penstock_(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
_OWN_LABEL = re.compile(r'(replica|model)="[^"]*",?')


@dataclass(frozen=True, slots=True)
class LiveServer:
    """One that answers."""

    port: int
    pid: int  # of the command; the others are its descendants
    log: Path  # what it has written

    def get(self, path: str) -> str:
        """The body of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def metrics(self) -> dict[str, float]:
        """The figures of this moment, by name and, in braces, the labels of its own, without Penstock's prefix."""
        return parse_metrics(self.get("/metrics"))

    def processes(self) -> dict[int, str]:
        """Its processes by pid, each with what it calls itself."""
        parents = {pid: _parent(pid) for pid in map(int, filter(str.isdigit, os.listdir("/proc")))}
        found = {self.pid}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        names = {pid: _name(pid) for pid in sorted(found)}
        return {pid: name for pid, name in names.items() if name}

    def pid_of(self, name: str) -> int:
        """The one process whose name begins so."""
        (pid,) = [pid for pid, each in self.processes().items() if each.startswith(name)]
        return pid

    def address(self) -> str:
        """Of its Ray cluster."""
        command = Path(f"/proc/{self.pid_of('raylet')}/cmdline").read_text()
        return next(word.partition("=")[2] for word in command.split("\0") if word.startswith("--gcs-address="))


def parse_metrics(text: str) -> dict[str, float]:
    """Every sample of an exposition of one replica; see `LiveServer.metrics`."""
    figures = dict[str, float]()
    for name, labels, value in _SAMPLE.findall(text):
        own = _OWN_LABEL.sub("", labels).rstrip(",")
        figures[f"{name}{{{own}}}" if own else name] = float(value)
    return figures


def resident_bytes(pid: int) -> int:
    """Memory that the process has in RAM; 0 when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def live_server(*flags: str, model: str = "demo") -> Iterator[LiveServer]:
    """Starts a server and ends it with SIGTERM, as an operator does."""
    port = free_port()
    command = [sys.executable, "-m", "penstock", "serve", model, "--port", str(port), *flags]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with (
            log.open("wb") as out,
            subprocess.Popen(
                command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True
            ) as process,
        ):
            server = LiveServer(port, process.pid, log)
            try:
                _wait_until_ready(server, process)
                yield server
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(END_TIMEOUT_S)


def _wait_until_ready(server: LiveServer, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        assert process.poll() is None, server.log.read_text()
        assert time.monotonic() < deadline, server.log.read_text()
        try:
            server.get("/health")
        except (URLError, ConnectionError):
            time.sleep(0.05)
        else:
            return


def _parent(pid: int) -> int:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def _name(pid: int) -> str:
    """Ray's processes name themselves; the others have the file that they run."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return ""
    if words[0].startswith("ray::"):
        return words[0].partition(".")[0].strip()
    scripts = [word for word in words if not word.startswith("-")]
    script = next((word for word in scripts if word.endswith(".py")), scripts[0] if scripts else "")
    return "penstock serve" if "penstock" in words else Path(script).name
