"""Answers shown while they come: a line for each prompt, redrawn in place on a terminal, else written when finished."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence

MAX_LINES = 40  # more prompts than this get a progress bar


class Lines:
    """One line for each label, with its text behind it."""

    def __init__(self, labels: Sequence[str]) -> None:
        columns, rows = shutil.get_terminal_size()
        self._labels = list(labels)
        self._texts = ["" for _ in labels]
        self._columns = columns
        self._width = min(max((len(label) for label in labels), default=0), columns // 2)
        self.redraws = sys.stdout.isatty() and len(self._labels) < min(rows - 1, MAX_LINES)
        if self.redraws:
            print("\n" * (len(self._labels) - 1))
            self._draw()

    def update(self, index: int, text: str) -> None:
        """Shows how far an answer has come."""
        self._texts[index] = text
        if self.redraws:
            self._draw()

    def finish(self, index: int, text: str) -> None:
        """Shows a whole answer."""
        self._texts[index] = text
        if self.redraws:
            self._draw()
        else:
            print(self._line(index), flush=True)

    def close(self) -> None:
        """Writes the lines that a terminal's width had cut once more, whole."""
        if self.redraws:
            cut = [self._line(index) for index in range(len(self._labels)) if len(self._line(index)) > self._columns]
            print("\n".join(["", *cut, ""]) if cut else "")

    def _draw(self) -> None:
        lines = [f"{self._line(index)[: self._columns - 1]}\x1b[K\n" for index in range(len(self._labels))]
        sys.stdout.write(f"\x1b[{len(lines)}A{''.join(lines)}")
        sys.stdout.flush()

    def _line(self, index: int) -> str:
        text = " ".join(self._texts[index].split())
        return f"{self._labels[index]:{self._width}}  {text}"
