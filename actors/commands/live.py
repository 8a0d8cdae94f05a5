"""Answers shown while they come: one as it grows, several each on its line, redrawn in place on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Protocol

MAX_LINES = 40  # more prompts than this are written when they are finished, beside a progress bar
_INTERVAL_S = 0.04
_CLEAR = "\r\x1b[K"


class View(Protocol):
    """Shows the answers to numbered prompts."""

    def update(self, index: int, text: str, finished: bool) -> None: ...

    def close(self) -> None: ...


def view_of(labels: Sequence[str]) -> View:
    """The view for so many prompts on this output."""
    if len(labels) == 1:
        return Growing()
    rows = shutil.get_terminal_size().lines
    if sys.stdout.isatty() and len(labels) <= min(MAX_LINES, rows - 2):
        return Redrawn(labels)
    return Finished(labels)


class Growing:
    """One answer's own text, as it grows."""

    def __init__(self) -> None:
        self._shown = ""

    def update(self, index: int, text: str, finished: bool) -> None:
        """Writes what is new."""
        print(text.removeprefix(self._shown), end="\n" if finished else "", flush=True)
        self._shown = text

    def close(self) -> None:
        """Everything is written."""


class Finished:
    """A line for each answer that is finished."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._width = _width(labels)
        self._lead = _CLEAR if sys.stdout.isatty() else ""  # a progress bar may stand in this line

    def update(self, index: int, text: str, finished: bool) -> None:
        """Writes a finished answer."""
        if finished:
            print(f"{self._lead}{_line(self._labels[index], self._width, text)}", flush=True)

    def close(self) -> None:
        """Everything is written."""


class Redrawn:
    """A block of lines, one for each prompt."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._columns = shutil.get_terminal_size().columns
        self._labels = labels
        self._texts = [""] * len(labels)
        self._width = _width(labels)
        self._drawn_s = 0.0
        sys.stdout.write("\n" * len(labels))
        self._draw()

    def update(self, index: int, text: str, finished: bool) -> None:
        """Shows how far an answer has come."""
        self._texts[index] = text
        if time.monotonic() - self._drawn_s >= _INTERVAL_S:
            self._draw()

    def close(self) -> None:
        """Draws a last time, and writes the lines that the terminal's width had cut once more, whole."""
        self._draw()
        for line in (line for line in self._lines() if len(line) >= self._columns):
            print(f"\n{line}")

    def _draw(self) -> None:
        self._drawn_s = time.monotonic()
        lines = [f"{line[: self._columns - 1]}\x1b[K\n" for line in self._lines()]
        sys.stdout.write(f"\x1b[{len(lines)}A{''.join(lines)}")
        sys.stdout.flush()

    def _lines(self) -> list[str]:
        return [_line(label, self._width, text) for label, text in zip(self._labels, self._texts, strict=True)]


def _width(labels: Sequence[str]) -> int:
    return min(max(map(len, labels), default=0), shutil.get_terminal_size().columns // 2)


def _line(label: str, width: int, text: str) -> str:
    return f"{' '.join(label.split()):{width}}  {' '.join(text.split())}"
