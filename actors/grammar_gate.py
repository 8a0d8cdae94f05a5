"""Judges grammars that strangers send, before an engine sees them: in a process that may hang, swell or crash.

Cheap bounds come first. Then a child process, started with the first grammar and again after it had to be killed,
compiles the grammar and makes a first mask, within a limit of time and of memory. One grammar at a time; what waits is
bounded. Verdicts are remembered. The child ends with its standard input, so with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import OrderedDict
from contextlib import suppress
from hashlib import blake2b
from json import dumps, loads
from typing import cast

from ..configs.structured import LIMITS, GrammarLimits, problem_of, split_spec
from ..errors import PenstockError

MAX_WAITING = 64
MAX_VERDICTS = 1024
RETRY_S = 60.0  # for so long a grammar that took too long, or crashed the child, isn't tried again
START_TIMEOUT_S = 60.0
MEMORY_BYTES = 1 << 30  # beyond what the child has when it is ready


class GateClosedError(PenstockError):
    """No grammar can be checked now, whatever it is; later one may be."""


class GrammarGate:
    """For one event loop."""

    def __init__(
        self,
        folder: str,
        vocab_size: int,
        timeout_s: float = 2.0,
        limits: GrammarLimits = LIMITS,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        """`folder` holds tokenizer.json; `vocab_size` is the model's. Nothing is started yet."""
        self._arguments = [folder, str(vocab_size), str(memory_bytes)]
        self._timeout_s = timeout_s
        self._limits = limits
        self._child: Process | None = None
        self._turn = asyncio.Lock()  # whose grammar the child has
        self._inquiries: dict[bytes, asyncio.Task[str | None]] = {}  # by the spec's hash
        self._verdicts: OrderedDict[bytes, tuple[str | None, float]] = OrderedDict()  # problem, and until when it holds

    @property
    def child_pid(self) -> int | None:
        """The process that compiles, where one runs."""
        return self._child.pid if self._child is not None else None

    async def check(self, spec: str) -> str | None:
        """The problem with a spec in words; None: an engine may have it. Raises GateClosedError."""
        problem = problem_of(spec, self._limits)
        if problem is not None:
            return problem
        key = blake2b(spec.encode(), digest_size=16).digest()
        known = self._verdicts.get(key)
        if known is not None and time.monotonic() < known[1]:
            self._verdicts.move_to_end(key)
            return known[0]
        if key not in self._inquiries:
            if len(self._inquiries) >= MAX_WAITING:
                raise GateClosedError(f"{MAX_WAITING} grammars wait to be checked: try again later")
            self._inquiries[key] = asyncio.create_task(self._inquire(key, spec))
        return await asyncio.shield(self._inquiries[key])  # who asked may leave; the child goes on

    def close(self) -> None:
        """Ends the child."""
        for inquiry in self._inquiries.values():
            inquiry.cancel()
        self._kill()

    async def _inquire(self, key: bytes, spec: str) -> str | None:
        try:
            async with self._turn:
                problem, holds_s = await self._ask(spec)
        finally:
            del self._inquiries[key]
        self._verdicts[key] = (problem, time.monotonic() + holds_s)
        while len(self._verdicts) > MAX_VERDICTS:
            self._verdicts.popitem(last=False)
        return problem

    async def _ask(self, spec: str) -> tuple[str | None, float]:
        """The child's verdict, and for how many seconds it holds."""
        kind = split_spec(spec)[0]
        try:
            child = await self._ready()
        except (OSError, TimeoutError) as error:
            self._kill()
            raise GateClosedError(f"grammars can't be checked: {error or type(error).__name__}") from None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(dumps(spec).encode() + b"\n")
        try:
            line = await asyncio.wait_for(child.stdout.readline(), self._timeout_s)
        except TimeoutError:
            self._kill()
            return f"compiling the {kind} took more than {self._timeout_s:g} s", RETRY_S
        if not line.endswith(b"\n"):
            self._kill()
            return f"the {kind} is beyond what the compiler can take", RETRY_S
        return cast("str | None", loads(line)), float("inf")

    async def _ready(self) -> Process:
        if self._child is not None and self._child.returncode is None:
            return self._child
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-m", "penstock.actors.grammar_child", *self._arguments]
        self._child = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, env=environment
        )
        assert self._child.stdout is not None
        if not await asyncio.wait_for(self._child.stdout.readline(), START_TIMEOUT_S):
            raise OSError("the process that compiles them does not start")
        return self._child

    def _kill(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with suppress(ProcessLookupError):
                child.kill()
            child._transport.close()  # type: ignore[attr-defined]  # the pipes, which nothing public closes
