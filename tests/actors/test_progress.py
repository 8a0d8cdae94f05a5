"""The progress line: for terminals alone, and true at its end."""

from __future__ import annotations

import sys

import pytest

from penstock.actors.progress import Progress


def test_nothing_is_written_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(2) as progress:
        progress.advance(5)
    assert capsys.readouterr().err == ""


def test_the_last_line_counts_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(2) as progress:
        progress.advance(5)
        progress.advance(7)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "[########################] 2/2 requests" in last
    assert last.endswith("\x1b[K\n")
