"""The command line over a real engine, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from .rig import heed_ctrl_c

COMMAND = [sys.executable, "-m", "penstock"]


def test_the_command_answers_traces_records_and_replays(tmp_path: Path) -> None:
    flags = ["--pipeline-parallel-size", "2", "--num-questions", "6", "--trace", "t.json", "--record", "r.record"]
    done = subprocess.run(
        [*COMMAND, "generate", *flags], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 6
    assert "stage 1 busy" in done.stderr
    assert json.loads((tmp_path / "t.json").read_text())
    replayed = subprocess.run(
        [*COMMAND, "replay", "r.record"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert replayed.returncode == 0, replayed.stderr
    assert "every byte the same" in replayed.stdout


def test_ctrl_c_ends_a_command_and_everything_that_it_started(tmp_path: Path) -> None:
    flags = ["--prompt", "a", "--max-tokens", "450", "--ignore-eos"]
    with subprocess.Popen(
        [*COMMAND, "generate", *flags],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    ) as command:
        assert command.stdout is not None
        command.stdout.read(1)  # it generates
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(30) == 130
    deadline = time.monotonic() + 10
    while (left := processes_of(command.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def processes_of(session: int) -> list[str]:
    """The command lines of a session's living processes."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has just ended
    return found
