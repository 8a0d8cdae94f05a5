"""The process behind `grammar_gate`: a spec a line comes in, a verdict a line goes out, both JSON.

Run as `python -m penstock.actors.grammar_child FOLDER VOCAB_SIZE MEMORY_BYTES`. It ends with its standard input, also
in the middle of a compilation, which other threads need not wait for.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from json import dumps, loads
from pathlib import Path
from queue import SimpleQueue

from ..errors import RequestError
from ..model.grammar_compiler import GrammarCompiler

_PAGE_BYTES = resource.getpagesize()


def main(folder: str, vocab_size: str, memory_bytes: str) -> None:
    """Serves until standard input ends."""
    verdicts = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print is no verdict
    specs: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(specs,), daemon=True).start()
    end = 0  # nothing is sampled here, so that any token may be the end
    compiler = GrammarCompiler(folder, int(vocab_size), [end])
    _problem_of(compiler, "regex\na")  # loads the libraries
    _bound_memory(int(memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=verdicts, flush=True)
    while True:
        print(dumps(_problem_of(compiler, specs.get())), file=verdicts, flush=True)


def _read(specs: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        specs.put(loads(line))
    os._exit(0)


def _problem_of(compiler: GrammarCompiler, spec: str) -> str | None:
    try:
        compiled = compiler.compile(spec)
    except RequestError as error:
        return str(error)
    compiler.forget(spec)
    from xgrammar import GrammarMatcher, allocate_token_bitmask

    mask = allocate_token_bitmask(1, compiler.vocab_size)
    GrammarMatcher(compiled).fill_next_token_bitmask(mask)
    return None


def _bound_memory(more_bytes: int) -> None:
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + more_bytes, used_bytes + more_bytes))


if __name__ == "__main__":
    main(*sys.argv[1:])
