"""The thread that drives the Scheduler: requests and results in, plans and token events out. No Ray in it.

It waits in one poll over all sockets and otherwise never: what a turn takes from any socket is bounded, every send is
non-blocking, and a client that doesn't keep up only delays itself. When anything raises, or a worker is dead or hung,
the engine has failed: every open request is answered with the cause, and so is every later one, at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeVar, cast

from ..errors import EngineDeadError, PenstockError
from ..scheduler.codec import decode_result, encode_plan
from ..scheduler.plan import StepResult
from .client_desk import MAX_FRAMES_PER_TURN, ClientDesk
from .client_port import ClientPort
from .engine_health import EngineHealth
from .histogram import Histogram
from .liveness import ObserverClock, Progress, Watch
from .poll_set import PollSet
from .wire import Kind, decode_step, decode_text, frame, unframe
from .worker_port import WorkerPort

if TYPE_CHECKING:
    from ..scheduler.scheduler import Scheduler
    from ..scheduler.stats import SchedulerStats

T = TypeVar("T")
log = logging.getLogger(__name__)

TICK_S = 0.25
FAREWELL_S = 0.5  # how long an ending engine waits for its clients to take the news


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """What the loop takes from the engine's settings."""

    heartbeat_interval_s: float = 0.25
    stage_timeout_s: float = 3.0
    step_timeout_s: float = 60.0
    result_delay_s: float = 0.0  # added to every result, to measure asynchrony


@dataclass(frozen=True, slots=True)
class LoopFigures:
    """What the loop tells of itself and of its scheduler."""

    scheduler: SchedulerStats
    queue_time_s: Histogram


class EngineLoop:
    """Drives one Scheduler over one set of workers until it fails or is stopped."""

    def __init__(
        self,
        scheduler: Scheduler,
        workers: Sequence[WorkerPort],
        settings: LoopSettings,
        on_failure: Callable[[str], None],
    ) -> None:
        self.failure: str | None = None
        self.scheduler = scheduler
        self.workers = workers
        self._on_failure = on_failure
        self._result_delay_s = settings.result_delay_s
        self._clock = ObserverClock(time.monotonic)
        self._watch = Watch(workers, settings.heartbeat_interval_s, settings.stage_timeout_s)
        self._progress = Progress(workers, settings.step_timeout_s)
        self._last_published_step = -1
        self._queue_time_s = Histogram()  # from a request's arrival to the first plan that holds it
        self._polls = PollSet()
        self._desk = ClientDesk(scheduler, self._polls, self._clock, workers)
        self._delayed: deque[tuple[float, StepResult]] = deque()  # (due, result) in order
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._next_tick = 0.0
        self._stop_at: float | None = None  # when a stopping loop ends at the latest
        self._thread = threading.Thread(target=self._run, name="engine-loop", daemon=True)

    # From other threads.

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def call(self, work: Callable[[], T], timeout_s: float = 10.0) -> T:
        """Runs `work` on the loop's thread, between turns, and returns what it returns."""
        if not self._thread.is_alive():
            raise EngineDeadError(self.failure or "the engine has ended")
        future: Future[T] = Future()
        self._calls.put(partial(_fulfil, future, work))
        self._polls.wake()
        return future.result(timeout_s)

    def attach(self, client: ClientPort) -> None:
        """Takes over a client's sockets."""
        self.call(lambda: self._desk.attach(client))

    def detach(self, client_id: str) -> None:
        """Aborts the client's requests and forgets it; unknown ids are fine."""
        self.call(lambda: self._desk.detach(client_id))

    def health(self, timeout_s: float) -> EngineHealth:
        """The answer of a loop that goes on; raises EngineDeadError for one that has failed, ended or hangs."""
        try:
            return self.call(self._health, timeout_s)
        except TimeoutError:
            raise EngineDeadError(f"the engine's loop has not answered for {timeout_s} s: hung") from None

    def figures(self) -> LoopFigures:
        """The figures of this moment."""
        return self.call(lambda: LoopFigures(self.scheduler.stats(), deepcopy(self._queue_time_s)))

    def stop(self, message: str) -> None:
        """Answers every open request with `message`, tells the clients, and ends the thread."""
        if self._thread.is_alive():
            self._calls.put(lambda: self._stop(message))
            self._polls.wake()
            self._thread.join(timeout=FAREWELL_S + 5.0)

    @property
    def num_clients(self) -> int:
        """Clients that are attached."""
        return self._desk.num_clients

    # The loop's thread.

    def _run(self) -> None:
        for worker in self.workers:
            worker.last_heard = self._clock.now
            self._polls.watch(worker.uplink.zmq_socket, partial(self._take, worker))
        try:
            while not self._ended():
                self._guarded_turn()
        finally:
            self._close()

    def _guarded_turn(self) -> None:
        try:
            self._turn()
        except BaseException as error:  # the engine's top: whatever happened, every request gets an answer
            if self.failure is not None:
                raise
            log.exception("the engine has failed")
            self._fail(str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}")

    def _turn(self) -> None:
        self._polls.poll(self._timeout_s())
        now = self._clock.tick()
        while not self._calls.empty():
            self._calls.get()()
        if self.failure is None:
            self._advance()
        self._desk.help_slow()
        if now >= self._next_tick:
            self._tick(now)

    def _health(self) -> EngineHealth:
        if self.failure is not None:
            raise EngineDeadError(self.failure)
        silence_s = self._clock.now - min(worker.last_heard for worker in self.workers)
        return EngineHealth(self._last_published_step + 1, self.scheduler.num_unfinished, silence_s)

    def _timeout_s(self) -> float:
        if not self._delayed:
            return TICK_S
        return min(TICK_S, max(0.0, self._delayed[0][0] - time.monotonic()))

    def _advance(self) -> None:
        """Takes results that are due, publishes every plan that may go out, and sends the events."""
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self.scheduler.update(self._delayed.popleft()[1])
        while (plan := self.scheduler.schedule()) is not None:
            self._publish(frame(Kind.PLAN, encode_plan(plan)), plan.step)
            self._last_published_step = plan.step
            for arrived_s in self.scheduler.first_planned_s:
                self._queue_time_s.observe(time.monotonic() - arrived_s)
        self._desk.deliver(self.scheduler.take_events())

    def _publish(self, data: bytes, step: int) -> None:
        for worker in self.workers:
            if not worker.plans.send(data):
                raise EngineDeadError(f"{worker.name} takes no plan at step {step}: it has died, or its queue is full")

    def _take(self, worker: WorkerPort) -> None:
        worker.last_heard = self._clock.now
        for data in worker.uplink.take(MAX_FRAMES_PER_TURN):
            kind, body = unframe(data)
            if kind is Kind.RESULT:
                self._delayed.append((time.monotonic() + self._result_delay_s, decode_result(cast(bytes, body))))
            elif kind is Kind.HEARTBEAT:
                worker.last_retired_step = decode_step(body)
            elif kind is Kind.COMPILED:
                self._desk.grammars.take(body)
            elif kind is Kind.FAILURE:
                self._watch.report(worker, decode_text(body), self._clock.now)
            else:
                raise EngineDeadError(f"{worker.name} sent an unexpected {kind.name} message")

    def _tick(self, now: float) -> None:
        self._next_tick = now + TICK_S
        if self.failure is None:
            verdict = self._watch.verdict(now) or self._progress.verdict(now, self._last_published_step)
            if verdict:
                self._fail(verdict)
        self._desk.tick()

    def _fail(self, message: str) -> None:
        self._end(message)
        self._on_failure(message)

    def _end(self, message: str) -> None:
        """Ends the engine for good, and tells the clients, who answer what is open with that."""
        self.failure = message
        try:
            self._desk.deliver(self.scheduler.take_events())
            self.scheduler.fail_all(message)
            self.scheduler.take_events()  # an end that came before FAILED would seem to be the request's own fault
        except Exception:  # the scheduler itself may be what broke; FAILED answers every request
            log.exception("the scheduler can't end its requests")
        self._desk.fail(message)
        for worker in self.workers:
            self._polls.unwatch(worker.uplink.zmq_socket)

    def _stop(self, message: str) -> None:
        self._stop_at = time.monotonic() + FAREWELL_S
        if self.failure is None:
            self._end(message)

    def _ended(self) -> bool:
        return self._stop_at is not None and (not self._desk.num_clients or time.monotonic() >= self._stop_at)

    def _close(self) -> None:
        self._desk.close()
        for worker in self.workers:
            worker.close()
        self._polls.close()


def _fulfil(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:  # belongs to the caller, who waits in another thread
        future.set_exception(error)
