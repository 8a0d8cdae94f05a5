"""Fake stages around the real stage scheduler: a recording device that never runs, and stages of a fixed step time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np

from penstock.scheduler.cpu_device import CpuDevice
from penstock.scheduler.device import Cause, Device, Event, Lane
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import StepResult, ints
from penstock.scheduler.stage_scheduler import StageScheduler
from penstock.scheduler.timeline import Timeline


@dataclass
class Operation:
    """What a recording device was told to do."""

    kind: str  # receive, compute, send, token_receive, token_send
    step: int  # for token_receive: the step whose tokens come


class RecordedEvent:
    cause: Cause = "compute"

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        return None


@dataclass
class RecordingDevice:
    """Notes the order in which work is enqueued and runs none of it."""

    operations: list[Operation] = field(default_factory=list)
    is_polled: bool = False

    def enqueue(
        self, lane: Lane, work: Callable[[], None], after: Sequence[Event] = (), *, cause: Cause, step: int
    ) -> RecordedEvent:
        self.operations.append(Operation(lane, step))
        return RecordedEvent()

    def close(self) -> None:
        return None


@dataclass
class QueueLink:
    """A link for plain objects."""

    queue: SimpleQueue[object] = field(default_factory=SimpleQueue)

    def send(self, tensor: object) -> None:
        self.queue.put(tensor)

    def receive(self, buffer: object) -> None:
        self.queue.get(timeout=60)

    def close(self) -> None:
        return None


@dataclass
class FakeStage:
    """A stage whose compute takes a fixed time; it sends and receives as the real one does."""

    device: Device
    upstream: QueueLink | None
    downstream: QueueLink | None
    token_receive: QueueLink | None
    token_send: QueueLink | None
    step_s: float = 0.0
    previous: list[Event] = field(default_factory=list)

    def prepare(self, inputs: StepInput) -> StepInput:
        return inputs

    def receive(self, work: StepInput) -> Sequence[Event]:
        events: list[Event] = []
        if (upstream := self.upstream) is not None:
            reader = self.previous[-2:-1]  # two buffers: the compute before the last has read this one
            events.append(
                self.device.enqueue(
                    "receive", lambda: upstream.receive(None), reader, cause="activations", step=work.step
                )
            )
        if (tokens := self.token_receive) is not None:
            for returned in work.returns:
                events.append(
                    self.device.enqueue(
                        "token_receive", lambda: tokens.receive(None), cause="tokens", step=returned.step
                    )
                )
        return events

    def compute(self, work: StepInput, after: Sequence[Event]) -> Event:
        event = self.device.enqueue("compute", lambda: time.sleep(self.step_s), after, cause="compute", step=work.step)
        self.previous.append(event)
        return event

    def send(self, work: StepInput, computed: Event) -> Event:
        if (downstream := self.downstream) is not None:
            return self.device.enqueue(
                "send", lambda: downstream.send(work.step), [computed], cause="send_buffer", step=work.step
            )
        if (tokens := self.token_send) is not None and len(work.sample_rows):
            return self.device.enqueue(
                "token_send", lambda: tokens.send(work.step), [computed], cause="send_buffer", step=work.step
            )
        return computed

    def result(self, work: StepInput) -> StepResult | None:
        if self.downstream is not None:
            return None
        tokens = np.full(len(work.sample_rows), 7, np.int32)
        return StepResult(step=work.step, token_ids=ints(tokens), epoch=work.plan.epoch)


@dataclass(frozen=True)
class Kept:
    """Steps per second with late results, as shares of those with prompt ones."""

    async_on: float
    async_off: float

    @property
    def shows_asynchrony(self) -> bool:
        return self.async_on >= 0.9 > self.async_off


def kept_with_late_results(steps_per_second: Callable[[bool, float], float], attempts: int = 3) -> Kept:
    """Delays each result by 0.8 of a step, as long as a step takes on this machine, now.

    `steps_per_second` takes (async on, delay in s). A busy neighbour can spoil one attempt, so there are a few.
    """
    kept = Kept(0.0, 0.0)
    for _ in range(attempts):
        prompt = steps_per_second(True, 0.0)
        delay_s = 0.8 / prompt
        kept = Kept(steps_per_second(True, delay_s) / prompt, steps_per_second(False, delay_s) / prompt)
        if kept.shows_asynchrony:
            break
    return kept


def fake_ranks(
    devices: Sequence[Device],
    mirror: Callable[[], Mirror],
    step_s: float,
    on_result: Callable[[StepResult], None],
    on_failure: Callable[[BaseException], None],
) -> list[StageScheduler]:
    """One stage scheduler for each device, chained like a pipeline."""
    last = len(devices) - 1
    edges = [QueueLink() for _ in devices]
    ranks = []
    for i, device in enumerate(devices):
        stage = FakeStage(
            device,
            upstream=edges[i - 1] if i else None,
            downstream=edges[i] if i < last else None,
            token_receive=edges[last] if i == 0 < last else None,
            token_send=edges[last] if 0 < i == last else None,
            step_s=step_s,
        )
        timeline = device.timeline if isinstance(device, CpuDevice) else Timeline()
        ranks.append(StageScheduler(stage, mirror(), device, on_result, on_failure, timeline))
    return ranks
