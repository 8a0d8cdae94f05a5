"""The gate says what is wrong with a grammar, and survives what its child does not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from penstock.actors import grammar_gate
from penstock.actors.grammar_gate import GateClosedError, GrammarGate
from penstock.configs.structured import GrammarLimits

from .fake_engine import DEMO
from .rig import eventually

T = TypeVar("T")
ENDLESS = "json\n" + json.dumps(  # takes a minute
    {"properties": {f"p{i}": {"type": "integer"} for i in range(600)}, "minProperties": 3, "maxProperties": 50}
)
PARENT = """
import asyncio, sys
from penstock.actors.grammar_gate import GrammarGate
async def main():
    gate = GrammarGate(sys.argv[1], 264, 60.0)
    await gate.check("regex\\na")
    print(gate.child_pid, flush=True)
    await gate.check(sys.argv[2])
asyncio.run(main())
"""


class Gate:
    """A gate and the loop that it lives in."""

    def __init__(self, **settings: Any) -> None:
        self._runner = asyncio.Runner()
        self.gate = self.run(self._make(**settings))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def check(self, spec: str) -> str | None:
        return self.run(self.gate.check(spec))

    def close(self) -> None:
        self.gate.close()
        self.run(asyncio.sleep(0))  # the transport's own last words
        self._runner.close()

    @staticmethod
    async def _make(**settings: Any) -> GrammarGate:
        return GrammarGate(DEMO, 264, **settings)


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    made = Gate(timeout_s=2.0)
    yield made
    made.close()


@pytest.mark.parametrize("spec", ['json\n{"type":"object"}', "json_object\n", "regex\n[a-z]+", 'choice\n["a", "b"]'])
def test_good_grammars_have_no_problem(gate: Gate, spec: str) -> None:
    assert gate.check(spec) is None


@pytest.mark.parametrize(
    ("spec", "words"), [('json\n{"type":"wrong"}', "wrong"), ("regex\n(", "regex"), ("grammar\nroot ::= x", "x")]
)
def test_bad_grammars_are_told_in_words(gate: Gate, spec: str, words: str) -> None:
    assert words in (gate.check(spec) or "")


def test_what_hangs_is_ended_in_time_and_remembered_and_others_go_on(gate: Gate) -> None:
    pid = gate.gate.child_pid
    assert gate.check(ENDLESS) == "compiling the json took more than 2 s"
    assert gate.gate.child_pid is None
    assert gate.check(ENDLESS) == "compiling the json took more than 2 s"
    assert gate.gate.child_pid is None, "it was tried again"
    assert gate.check("regex\nx") is None
    assert gate.gate.child_pid not in (None, pid)


def test_what_crashes_the_child_is_told_to_all_who_asked(gate: Gate) -> None:
    crashing = ENDLESS + " "
    gate.check("regex\nx+")

    async def crash() -> list[str | None]:
        asking = [asyncio.create_task(gate.gate.check(crashing)) for _ in range(3)]
        for _ in range(5):  # turns of the loop, until the child has it
            await asyncio.sleep(0)
        asking[0].cancel()
        assert gate.gate.child_pid is not None
        os.kill(gate.gate.child_pid, signal.SIGKILL)
        return await asyncio.gather(*asking[1:])

    assert gate.run(crash()) == ["the json is beyond what the compiler can take"] * 2


def test_bounds_come_before_any_process() -> None:
    gate = Gate(limits=GrammarLimits(max_depth=5))
    assert "nested 6" in (gate.check('json\n{"items":{"items":{"items":{"items":{"items":{"items":true}}}}}}') or "")
    assert "nested" in (gate.check("json\n" + "[" * 60000) or "")
    assert "bytes" in (gate.check("regex\n" + "a" * 70000) or "")
    assert gate.gate.child_pid is None
    gate.close()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_gate, "MAX_WAITING", 0)
    gate = Gate()
    with pytest.raises(GateClosedError, match="try again later"):
        gate.check("regex\nx")
    gate.close()


def test_a_child_that_can_not_start_is_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    gate = Gate()
    with pytest.raises(GateClosedError, match="grammars can't be checked"):
        gate.check("regex\nx")
    gate.close()


def test_a_killed_parent_leaves_no_child_even_one_that_compiles() -> None:
    command = [sys.executable, "-c", PARENT, DEMO, ENDLESS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    eventually(lambda: not _is_alive(child))


@pytest.mark.slow
def test_memory_is_bounded() -> None:
    gate = Gate(timeout_s=20.0, memory_bytes=8 << 20)
    assert "memory" in (gate.check("choice\n" + json.dumps([f"{i:x}" * 8 for i in range(2000)])) or "")
    gate.close()


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
