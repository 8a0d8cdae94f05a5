"""What a run leaves: opened at its start, written at its end or at its failure, each once."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from penstock.actors.run_files import RunFiles
from penstock.configs.engine import EngineConfig
from penstock.errors import ConfigError
from penstock.scheduler.timeline import Span

SPANS = {"stage 0 rank 0": [Span("compute", 0, "step", 1000, 3000)]}


def config(folder: Path, **paths: str) -> EngineConfig:
    return EngineConfig(model=str(folder), **{key: str(folder / name) for key, name in paths.items()})


@pytest.mark.parametrize("key", ["trace", "record"])
def test_a_path_that_cannot_be_written_ends_the_start(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} '.*absent/run' can't be written: No such file"):
        RunFiles(config(tmp_path, **{key: "absent/run"}))


def test_the_first_who_asks_writes_the_trace(tmp_path: Path) -> None:
    files = RunFiles(config(tmp_path, trace="run.json"))
    files.write_trace(lambda: SPANS)
    files.write_trace(lambda: {})
    assert any(event.get("dur") == 2.0 for event in json.loads((tmp_path / "run.json").read_text())["traceEvents"])


def test_a_trace_that_fails_at_the_end_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "gone").mkdir()
    files = RunFiles(config(tmp_path, trace="gone/run.json"))
    (tmp_path / "gone" / "run.json").unlink()
    (tmp_path / "gone").rmdir()
    with caplog.at_level(logging.ERROR):
        files.write_trace(lambda: SPANS)
    assert "the trace can't be written" in caplog.text


def test_what_is_recorded_can_be_read_after_a_failure(tmp_path: Path) -> None:
    files = RunFiles(config(tmp_path, record="run.record"))
    assert files.record is not None
    files.record.write(b"plans")
    files.flush()
    assert (tmp_path / "run.record").read_bytes() == b"plans"
    files.close()
    files.flush()


def test_a_run_that_leaves_nothing_opens_nothing(tmp_path: Path) -> None:
    files = RunFiles(config(tmp_path))
    files.write_trace(lambda: pytest.fail("nobody asked"))
    files.flush()
    files.close()
    assert list(tmp_path.iterdir()) == []
