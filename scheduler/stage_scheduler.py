"""A stage's own asynchronous scheduler: it decides when, never what.

For every plan, as soon as it is there: derive the step, prepare its arrays, and enqueue `receive, compute, send` in
plan order, so that over time every rank enqueues compute(t), send(t), receive(t + 1). Launching waits for no device: a
thread of its own waits for each step's last event, retires it and hands its result out; or, where a device is polled,
whoever submits also calls `poll`. How far a stage runs ahead is bounded by the plans that the scheduler leaves
un-retired.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from .device import Device, Event
from .mirror import Mirror, StepInput
from .plan import StepPlan, StepResult
from .timeline import Timeline, now_ns

Work = TypeVar("Work")


class Stage(Protocol[Work]):
    """What a stage does with a step: source, layers and sink behind five methods."""

    def prepare(self, inputs: StepInput) -> Work:
        """Host part: the step's tensors and buffers. Runs while earlier steps compute."""
        ...

    def receive(self, work: Work) -> Sequence[Event]:
        """Enqueues what the step receives; returns the events that its compute waits for."""
        ...

    def compute(self, work: Work, after: Sequence[Event]) -> Event:
        """Enqueues the layers, with the sampler behind them; returns their event."""
        ...

    def send(self, work: Work, computed: Event) -> Event:
        """Enqueues what leaves the stage; the step retires with the returned event."""
        ...

    def result(self, work: Work) -> StepResult | None:
        """The step's answer, built on the retiring thread; None where another rank answers."""
        ...


_Launched = tuple[int, Any, Event]  # step, its work, its last event


class StageScheduler:
    """Drives one rank of one stage. `submit` is called by one thread, with every plan, in order."""

    def __init__(
        self,
        stage: Stage[Any],
        mirror: Mirror,
        device: Device,
        on_result: Callable[[StepResult], None],
        on_failure: Callable[[BaseException], None],
        timeline: Timeline,
    ) -> None:
        self.timeline = timeline
        self.last_retired_step = -1
        self.failure: BaseException | None = None
        self._stage = stage
        self._mirror = mirror
        self._device = device
        self._on_result = on_result
        self._on_failure = on_failure
        self._polled: deque[_Launched] = deque()  # where the device is polled, else:
        self._launched: SimpleQueue[_Launched | None] = SimpleQueue()
        self._retirer: threading.Thread | None = None
        if not device.is_polled:
            self._retirer = threading.Thread(target=self._retire_all, name="retire", daemon=True)
            self._retirer.start()

    def submit(self, plan: StepPlan) -> None:
        """Launches the plan's step behind the earlier ones. Never blocks; failures go to `on_failure`."""
        if self.failure is not None:
            return
        start_ns = now_ns()
        try:
            self._launch(self._mirror.apply(plan))
            self.timeline.launched(plan.step, start_ns, now_ns())
        except BaseException as error:  # one of the actor's tops: a broken invariant must reach the engine
            self._fail(error)

    def poll(self) -> bool:
        """Retires the steps that are over; whether there are others, so that it should be called again at once.

        Called by the thread that submits. Always False where a thread of its own retires.
        """
        polled = self._polled
        if not polled or self.failure is not None:
            return False
        try:
            while polled and polled[0][2].done():
                self._retire(*polled.popleft())
        except BaseException as error:
            self._fail(error)
            return False
        return bool(polled)

    def close(self) -> None:
        """Ends the threads; one that retires first retires what was launched, as far as peers allow."""
        self._launched.put(None)
        self._device.close()
        if self._retirer is not None:
            self._retirer.join(timeout=1.0)

    def _launch(self, inputs: StepInput) -> None:
        work = self._stage.prepare(inputs)
        received = self._stage.receive(work)
        computed = self._stage.compute(work, received)
        sent = self._stage.send(work, computed)
        launched = (inputs.step, work, sent)
        if self._retirer is None:
            self._polled.append(launched)
        else:
            self._launched.put(launched)

    def _retire_all(self) -> None:
        try:
            while (launched := self._launched.get()) is not None:
                self._retire(*launched)
        except BaseException as error:
            self._fail(error)

    def _retire(self, step: int, work: Any, sent: Event) -> None:
        sent.wait()
        result = self._stage.result(work)
        self.last_retired_step = step
        if result is not None:
            self._on_result(result)

    def _fail(self, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
            self._on_failure(error)
