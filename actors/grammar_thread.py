"""A rank's compiling: grammars that the engine announces, on a thread of their own, each answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from ..errors import RequestError
from ..model.grammar_compiler import GrammarCompiler

log = logging.getLogger(__name__)


class GrammarThread:
    """Started with the first grammar; the stage finds what it compiled in the same compiler."""

    def __init__(self, compiler: GrammarCompiler, answer: Callable[[int, str | None, int], None]) -> None:
        """`answer(number, problem, num_bytes)` is called on the thread, once for each grammar."""
        self._compiler = compiler
        self._answer = answer
        self._specs: SimpleQueue[tuple[int, str] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, number: int, spec: str) -> None:
        """Compiles it behind the earlier ones. Never blocks."""
        self._specs.put((number, spec))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            self._thread.start()

    def forget(self, spec: str) -> None:
        """Lets go of a grammar that no request uses."""
        self._compiler.forget(spec)

    def close(self) -> None:
        """Lets the thread end; one that compiles ends with the process."""
        self._specs.put(None)

    def _run(self) -> None:
        while (item := self._specs.get()) is not None:
            number, spec = item
            self._answer(number, *self._compile(spec))

    def _compile(self, spec: str) -> tuple[str | None, int]:
        """What is wrong with the grammar, or None, and how many bytes it takes."""
        try:
            return None, self._compiler.compile(spec).memory_size_bytes
        except RequestError as error:
            return str(error), 0
        except Exception as error:  # the thread's top: whatever it was, the request gets an answer
            log.exception("a grammar could not be compiled")
            return f"the grammar could not be compiled: {type(error).__name__}: {error}", 0
