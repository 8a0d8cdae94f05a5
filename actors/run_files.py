"""The files that a run leaves if it is asked to: a record for `penstock replay`, and a timeline."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from ..configs.engine import EngineConfig
from ..errors import ConfigError
from ..scheduler.timeline import Span, write_chrome_trace

log = logging.getLogger(__name__)


class RunFiles:
    """Opened before anything is hired, so that a path which can't be written ends the start and not the run."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigError for a path that can't be written."""
        self.record: BinaryIO | None = _opened("record", config.record)
        if (trace := _opened("trace", config.trace)) is not None:
            trace.close()
        self._trace = config.trace
        self._lock = threading.Lock()

    def write_trace(self, spans: Callable[[], Mapping[str, list[Span]]]) -> None:
        """Asks for the timelines and writes them, the first time; what fails is logged, as a run ends in any case."""
        with self._lock:
            path, self._trace = self._trace, None
            if path is None:
                return
            try:
                write_chrome_trace(path, spans())
            except OSError as error:
                log.error("the trace can't be written: %s", error)

    def flush(self) -> None:
        """What is recorded so far is in the file."""
        if self.record is not None and not self.record.closed:
            self.record.flush()

    def close(self) -> None:
        """No more is recorded."""
        if self.record is not None:
            self.record.close()


def _opened(what: str, path: str | None) -> BinaryIO | None:
    if path is None:
        return None
    try:
        return Path(path).open("wb")
    except OSError as error:
        raise ConfigError(f"{what} {path!r} can't be written: {error.strerror or error}") from None
