"""Parts that the actors' tests share: socket pairs, an engine loop in one process, requests and their answers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from penstock.actors.client_port import ClientPort
from penstock.actors.engine_loop import EngineLoop, LoopSettings
from penstock.actors.sockets import Receiver, Sender, Sockets
from penstock.actors.wire import (
    Kind,
    decode_events,
    decode_grammar,
    decode_text,
    encode_compiled,
    encode_request,
    encode_step,
    encode_text,
    frame,
    unframe,
)
from penstock.actors.worker_port import WorkerName, WorkerPort
from penstock.scheduler.codec import decode_plan, encode_result
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.messages import NewRequest, TokenEvent
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Sampling, StepResult, ints
from penstock.scheduler.scheduler import Scheduler

from .fake_stage import next_token


def request(
    request_id: str, num_prompt: int = 5, max_tokens: int = 4, client_id: str = "", grammar: str = ""
) -> NewRequest:
    tokens = ints(np.arange(1, num_prompt + 1))
    return NewRequest(request_id, tokens, max_tokens, Sampling(grammar=grammar), client_id)


def fake_output(num_prompt: int, num_tokens: int) -> list[int]:
    """What fake stages answer."""
    return [next_token(position) for position in range(num_prompt - 1, num_prompt - 1 + num_tokens)]


def heed_ctrl_c() -> None:
    """For `preexec_fn`: a shell starts what runs in its background deaf to SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def eventually(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for a condition that another thread or process makes true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.005)


@dataclass
class Answers:
    """Collects events by request."""

    tokens: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, TokenEvent] = field(default_factory=dict)
    num_events: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: TokenEvent) -> None:
        with self.changed:
            self.num_events += 1
            tokens = self.tokens.setdefault(event.request_id, [])
            if event.error is None:
                assert event.start == len(tokens), f"{event.request_id}: {event.start} after {len(tokens)} tokens"
            tokens += event.token_ids.tolist()
            if event.finish_reason is not None:
                assert event.request_id not in self.ends, f"{event.request_id} ended twice"
                self.ends[event.request_id] = event
            self.changed.notify_all()

    def wait(self, num_ends: int, timeout_s: float = 20.0) -> None:
        with self.changed:
            ended = self.changed.wait_for(lambda: len(self.ends) >= num_ends, timeout_s)
            assert ended, f"{len(self.ends)} of {num_ends} requests ended within {timeout_s} s"

    def wait_for_tokens(self, request_id: str, timeout_s: float = 20.0) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: bool(self.tokens.get(request_id)), timeout_s)


class FakeWorker:
    """The far end of a worker's sockets: answers plans like `fake_stage`, heartbeats when told to."""

    def __init__(self, sockets: Sockets, stage_idx: int, answers: bool) -> None:
        self.plans: Receiver = sockets.receiver(sockets.peer, 256)
        uplink = sockets.receiver(sockets.peer, 1024)
        self.uplink: Sender = sockets.sender(uplink.address, 1024)
        name = WorkerName(stage_idx, 0, 1000 + stage_idx)
        self.port = WorkerPort(name, sockets.sender(self.plans.address, 256), uplink)
        self.num_plans = 0
        self.silent = False
        self.paused = False
        self.ended = False
        self.grammars: list[tuple[int, str]] = []  # announced
        self.forgotten: list[str] = []
        self.compiles = True  # whether it answers to them; what holds "wrong" is wrong
        self._answers = answers
        self._mirror = Mirror(64, 64, 4)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def fail(self, text: str) -> None:
        self.uplink.send(frame(Kind.FAILURE, encode_text(text)))

    def close(self) -> None:
        self.ended = True
        self._thread.join()
        self.plans.close()
        self.uplink.close()

    def _run(self) -> None:
        while not self.ended:
            self.plans.wait(0.02)
            if not self.silent:
                self.uplink.send(frame(Kind.HEARTBEAT, encode_step(self.num_plans - 1)))
            for data in [] if self.paused else self.plans.take(64):
                self._step(data)

    def compiled(self, number: int, spec: str) -> None:
        self.uplink.send(
            frame(Kind.COMPILED, encode_compiled(number, "no such type" if "wrong" in spec else None, 1000))
        )

    def _step(self, data: bytes) -> None:
        kind, body = unframe(data)
        if kind is Kind.FORGET:
            self.forgotten.append(decode_text(body))
            return
        if kind is Kind.GRAMMAR:
            self.grammars.append(decode_grammar(body))
            if self.compiles:
                self.compiled(*self.grammars[-1])
            return
        plan = decode_plan(bytes(body))
        inputs = self._mirror.apply(plan)
        self.num_plans += 1
        if self._answers:
            tokens = ints([next_token(int(inputs.seq_lens[row]) - 1) for row in inputs.sample_rows])
            self.uplink.send(frame(Kind.RESULT, encode_result(StepResult(plan.step, tokens, plan.epoch))))


class FakeClient:
    """The far end of a client's sockets; it reads only when told to."""

    def __init__(self, sockets: Sockets, loop: EngineLoop, client_id: str, max_frames: int = 256) -> None:
        self.client_id = client_id
        self.events = sockets.receiver(sockets.peer, max_frames)
        requests = sockets.receiver(sockets.peer, 1024)
        self.requests = sockets.sender(requests.address, 1024)
        self.open: set[str] = set()  # requests without an end
        self.failed: str | None = None
        self.open_when_failed: set[str] = set()
        loop.attach(ClientPort(client_id, requests, sockets.sender(self.events.address, max_frames), loop.scheduler))

    def submit(self, new: NewRequest) -> None:
        self.open.add(new.request_id)
        assert self.requests.send(frame(Kind.REQUEST, encode_request(new)))

    def abort(self, request_id: str) -> None:
        assert self.requests.send(frame(Kind.ABORT, encode_text(request_id)))

    def read(self, answers: Answers, num_ends: int, timeout_s: float = 10.0) -> None:
        """Reads until so many requests have ended."""
        deadline = time.monotonic() + timeout_s
        while len(answers.ends) < num_ends:
            assert time.monotonic() < deadline, f"{len(answers.ends)} of {num_ends} requests ended"
            self.read_some(answers)

    def read_some(self, answers: Answers) -> None:
        self.events.wait(0.05)
        for data in self.events.take(64):
            kind, body = unframe(data)
            if kind is Kind.EVENTS:
                for event in decode_events(body, self.client_id):
                    if event.request_id not in self.open_when_failed:  # a refusal behind FAILED: a client has answered
                        answers(event)
                self.open -= answers.ends.keys()
            elif kind is Kind.FAILED:
                self._fail(decode_text(body), answers)

    def close(self) -> None:
        self.requests.close()
        self.events.close()

    def _fail(self, message: str, answers: Answers) -> None:
        """Answers what is open, as a client does."""
        self.failed, self.open_when_failed, self.open = message, self.open, set()
        for request_id in self.open_when_failed:
            answers(TokenEvent(self.client_id, request_id, 0, finish_reason="error", error=message))


@dataclass
class LoopRig:
    """An engine loop over fake workers."""

    sockets: Sockets
    loop: EngineLoop
    workers: list[FakeWorker]
    failures: list[str]
    clients: list[FakeClient] = field(default_factory=list)

    def client(self, max_frames: int = 256) -> FakeClient:
        self.clients.append(FakeClient(self.sockets, self.loop, f"client{len(self.clients)}", max_frames))
        return self.clients[-1]


@contextmanager
def loop_rig(num_stages: int = 2, settings: LoopSettings | None = None) -> Iterator[LoopRig]:
    """A running loop with `num_stages` fake workers; a small cache of 64 blocks of 4 tokens."""
    sockets = Sockets("here", "127.0.0.1")
    workers = [FakeWorker(sockets, stage, stage == num_stages - 1) for stage in range(num_stages)]
    config = SchedulerConfig(
        num_stages=num_stages,
        num_blocks=64,
        block_size=4,
        max_num_seqs=64,
        max_model_len=256,
        max_unretired_plans=num_stages + 1,
        vocab_size=1000,
    )
    failures: list[str] = []
    loop = EngineLoop(Scheduler(config), [w.port for w in workers], settings or LoopSettings(), failures.append)
    loop.start()
    rig = LoopRig(sockets, loop, workers, failures)
    try:
        yield rig
    finally:
        for client in rig.clients:
            client.requests.send(frame(Kind.BYE))
        loop.stop("the test is over")
        for worker in workers:
            worker.close()
        for client in rig.clients:
            client.close()
        sockets.close()
