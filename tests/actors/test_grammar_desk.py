"""A request with a new grammar waits until the last stage has compiled it; everything else goes on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, cast

import pytest

from penstock.actors import grammar_desk
from penstock.actors.engine_loop import LoopSettings
from penstock.actors.grammar_desk import GrammarDesk
from penstock.actors.grammar_thread import GrammarThread
from penstock.actors.liveness import ObserverClock
from penstock.actors.wire import Kind, decode_compiled, decode_grammar, encode_compiled, encode_grammar, frame
from penstock.actors.worker_port import WorkerName, WorkerPort
from penstock.configs.structured import LIMITS
from penstock.errors import RequestError

from .rig import Answers, FakeClient, LoopRig, eventually, fake_output, loop_rig, request

SPEC = "regex\na+"
RANKS = [(0, 0), (0, 1), (1, 0), (1, 1)]  # (stage, rank)


@dataclass
class Plans:
    """A rank's way in, which notes whom something was sent to."""

    rank: tuple[int, int]
    sent: list[tuple[int, int]]

    def send(self, data: bytes) -> bool:
        self.sent.append(self.rank)
        return True


class Compiler:
    """Knows three specs."""

    memory_size_bytes = 5

    def compile(self, spec: str) -> Compiler:
        if spec == "refuse":
            raise RequestError("not like this")
        if spec == "break":
            raise KeyError(spec)
        return self


@pytest.fixture
def rig() -> Iterator[LoopRig]:
    with loop_rig(settings=LoopSettings(heartbeat_interval_s=0.05, stage_timeout_s=0.6)) as made:
        yield made


@pytest.fixture
def waiting(rig: LoopRig) -> FakeClient:
    """A client whose request "a" waits for its grammar."""
    rig.workers[-1].compiles = False
    client = rig.client()
    client.submit(request("a", grammar=SPEC))
    eventually(lambda: len(rig.workers[-1].grammars) == 1)
    return client


def num_waiting(rig: LoopRig) -> int:
    return rig.loop.call(lambda: rig.loop._desk.grammars.num_waiting)


def release(rig: LoopRig) -> None:
    rig.workers[-1].compiled(*rig.workers[-1].grammars[-1])


def test_grammars_survive_the_wire() -> None:
    assert decode_grammar(encode_grammar(3, "regex\né")) == (3, "regex\né")
    assert decode_compiled(encode_compiled(3, None, 7)) == (3, None, 7)
    assert decode_compiled(encode_compiled(4, "no", 0)) == (4, "no", 0)


def test_a_grammar_is_compiled_once_and_by_the_last_stage_alone(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    for i in range(5):
        client.submit(request(f"r{i}", grammar=SPEC))
    client.read(answers, 5)
    client.submit(request("later", grammar=SPEC))
    client.read(answers, 6)
    assert all(answers.tokens[name] == fake_output(5, 4) for name in answers.ends)
    assert [len(worker.grammars) for worker in rig.workers] == [0, 1]


def test_a_grammar_that_does_not_compile_is_the_answer_now_and_later(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    for i in range(2):
        client.submit(request(f"r{i}", grammar="json\nwrong"))
        client.read(answers, i + 1)
        assert (answers.ends[f"r{i}"].finish_reason, answers.ends[f"r{i}"].error) == ("error", "no such type")
    assert len(rig.workers[-1].grammars) == 1


def test_other_requests_do_not_wait(rig: LoopRig, waiting: FakeClient) -> None:
    answers = Answers()
    waiting.submit(request("b"))
    waiting.read(answers, 1)
    assert set(answers.ends) == {"b"}
    release(rig)
    waiting.read(answers, 2)
    assert answers.tokens["a"] == fake_output(5, 4)


def test_a_request_that_waits_can_be_aborted(rig: LoopRig, waiting: FakeClient) -> None:
    answers = Answers()
    waiting.abort("a")
    waiting.read(answers, 1)
    assert answers.ends["a"].finish_reason == "abort"
    release(rig)
    waiting.submit(request("a", grammar=SPEC))
    waiting.read(answers, 1)
    assert num_waiting(rig) == 0


def test_a_client_that_leaves_takes_what_waits_with_it(rig: LoopRig, waiting: FakeClient) -> None:
    waiting.requests.send(frame(Kind.BYE))
    eventually(lambda: rig.loop.num_clients == 0)
    assert num_waiting(rig) == 0
    release(rig)
    assert rig.loop.call(lambda: rig.loop.scheduler.num_unfinished) == 0


def test_an_engine_that_fails_answers_what_waits(rig: LoopRig, waiting: FakeClient) -> None:
    answers = Answers()
    rig.workers[0].fail("ValueError: a broken tensor")
    waiting.read(answers, 1)
    assert "a broken tensor" in (answers.ends["a"].error or "")
    assert waiting.open_when_failed == {"a"}


def test_an_id_that_waits_is_in_use(rig: LoopRig, waiting: FakeClient) -> None:
    answers = Answers()
    waiting.submit(request("a"))
    waiting.read(answers, 1)
    assert "already in use" in (answers.ends["a"].error or "")
    assert num_waiting(rig) == 1


def test_waiting_ends(rig: LoopRig, waiting: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_desk, "COMPILE_TIMEOUT_S", 0.0)
    answers = Answers()
    waiting.read(answers, 1)
    assert "regex was not compiled within 0 s" in (answers.ends["a"].error or "")
    release(rig)
    waiting.submit(request("b", grammar=SPEC))
    waiting.read(answers, 2)
    assert answers.tokens["b"] == fake_output(5, 4), "what is compiled late is compiled"


def test_specs_under_way_and_requests_that_wait_are_bounded(
    rig: LoopRig, waiting: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_desk, "MAX_UNDER_WAY", 2)
    monkeypatch.setattr(grammar_desk, "MAX_WAITING", 4)
    answers = Answers()
    for name in "bcde":
        waiting.submit(request(name, grammar=f"regex\n{name}"))
    waiting.read(answers, 1)
    assert "4 requests wait" in (answers.ends["e"].error or "")
    eventually(lambda: [spec for _, spec in rig.workers[-1].grammars] == [SPEC, "regex\nb"])
    waiting.abort("c")
    waiting.read(answers, 2)
    release(rig)
    eventually(lambda: [spec for _, spec in rig.workers[-1].grammars][2:] == ["regex\nd"])


@pytest.mark.parametrize("problem", [None, "no memory"])
def test_every_rank_of_the_last_stage_compiles_and_one_problem_is_enough(problem: str | None) -> None:
    sent: list[tuple[int, int]] = []
    ranks = [WorkerPort(WorkerName(*rank, pid=1), cast(Any, Plans(rank, sent)), cast(Any, None)) for rank in RANKS]
    added: list[str] = []
    refused: list[str] = []
    desk = GrammarDesk(
        ranks,
        ObserverClock(time.monotonic),
        lambda request: added.append(request.request_id),
        lambda request, message: refused.append(message),
    )
    desk.submit(request("a", grammar=SPEC))
    assert sent == [(1, 0), (1, 1)]
    desk.take(memoryview(encode_compiled(0, problem, 1)))
    assert desk.num_waiting == 1
    desk.take(memoryview(encode_compiled(0, None, 2)))
    assert (added, refused) == ((["a"], []) if problem is None else ([], [problem]))


def test_ranks_forget_what_no_request_uses_when_room_is_needed(rig: LoopRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_desk, "MAX_KEPT_BYTES", 2500)  # two grammars of the rig's size
    client, answers = rig.client(), Answers()
    for count, name in enumerate("abcb", 1):
        client.submit(request(f"{name}{count}", grammar=f"regex\n{name}"))
        client.read(answers, count)
    assert all(end.finish_reason == "length" for end in answers.ends.values())
    assert [spec for _, spec in rig.workers[-1].grammars] == ["regex\na", "regex\nb", "regex\nc"]
    assert rig.workers[-1].forgotten == ["regex\na"]


def test_grammars_in_use_are_kept_and_one_too_many_is_refused(rig: LoopRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_desk, "MAX_KEPT_BYTES", 1500)
    client, answers = rig.client(), Answers()
    rig.workers[0].paused = rig.workers[-1].paused = True
    client.submit(request("a", grammar=SPEC))
    eventually(lambda: num_waiting(rig) == 1)
    rig.loop.call(lambda: rig.loop._desk.grammars.take(memoryview(encode_compiled(0, None, 1000))))
    client.submit(request("b", grammar="regex\nb"))
    eventually(lambda: num_waiting(rig) == 1)
    rig.loop.call(lambda: rig.loop._desk.grammars.take(memoryview(encode_compiled(1, None, 1000))))
    client.read(answers, 1)
    assert "takes 1000 bytes; 1500 are kept" in (answers.ends["b"].error or "")
    client.abort("a")
    client.read(answers, 2)
    assert not rig.loop.call(lambda: rig.loop._desk.grammars.has_users)


def test_a_rank_answers_whatever_its_compiler_does() -> None:
    answers: SimpleQueue[tuple[int, str | None, int]] = SimpleQueue()
    thread = GrammarThread(cast(Any, Compiler()), lambda *answer: answers.put(answer))
    for number, spec in enumerate(("fine", "refuse", "break", "fine")):
        thread.submit(number, spec)
    found = [answers.get(timeout=10) for _ in range(4)]
    thread.close()
    assert found[::3] == [(0, None, 5), (3, None, 5)]
    assert found[1] == (1, "not like this", 0)
    assert "KeyError" in (found[2][1] or "")


def test_a_spec_that_no_client_of_ours_would_send_is_refused(rig: LoopRig) -> None:
    client, answers = rig.client(), Answers()
    client.submit(request("a", grammar="regex\n" + "a" * (LIMITS.max_bytes + 100)))
    client.read(answers, 1)
    assert str(LIMITS.max_bytes) in (answers.ends["a"].error or "")
