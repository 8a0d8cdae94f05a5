"""What a step's end waits for on the last stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import torch

from penstock.model.exchange import Exchange
from penstock.model.gpu.trial import step_of
from penstock.model.limits import StepLimits
from penstock.model.ring import Ring, RingPlace
from penstock.model.sampler import Sampled
from penstock.model.sinks import SamplerSink
from penstock.model.work import StepWork
from penstock.scheduler.device import Cause, Event, Lane


class Told:
    """An event whose end is decided by the test."""

    cause: Cause = "send_buffer"

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self.is_over = False
        self.error: BaseException | None = None

    def done(self) -> bool:
        return self.is_over or self.error is not None

    def wait(self) -> None:
        assert self.done(), "the step path waits"
        if self.error is not None:
            raise self.error


class Device:
    """Runs nothing."""

    is_polled = True

    def enqueue(
        self, lane: Lane, work: Callable[[], None], after: Sequence[Event] = (), *, cause: Cause, step: int
    ) -> Told:
        return Told(lane)

    def close(self) -> None: ...


def sent_step(answers: bool, kept: bool) -> tuple[SamplerSink, StepWork, Told, Event]:
    """The last of two stages has sent a step's tokens; `kept` says whether the device has left them on the host."""
    limits = StepLimits(4, 16, 64, 16, 8, torch.float32)
    ring = Ring(torch.zeros(2, 4, dtype=torch.int64))
    exchange = Exchange(sampled=ring)
    sampler: Any = None
    sink = SamplerSink(Device(), sampler, sampler, sampler, sampler, sampler, exchange, cast(Any, object()), answers)
    work = StepWork(step_of([3, 3], [1, 1], limits), sampled=Sampled(torch.tensor([5, 6])))
    if kept:
        work.tokens, _ = ring.take(2)
        assert isinstance(work.tokens, RingPlace)
    computed = Told("compute")
    return sink, work, computed, sink.send(work, computed)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("answers", [True, False])
def test_a_step_retires_without_its_tokens_send_and_their_buffer_waits_for_it(answers: bool, kept: bool) -> None:
    sink, work, computed, last = sent_step(answers, kept)
    assert last is computed if kept or not answers else cast(Told, last).lane == "copy"
    if kept:
        assert sink.exchange.sampled is not None
        sink.exchange.sampled.take(1)
        _, free = sink.exchange.sampled.take(1)
        assert [cast(Told, event).lane for event in free] == ["token_send"]
    if not answers:
        assert sink.result(work) is None


def test_a_send_that_failed_is_told_with_its_step() -> None:
    sink, work, _, _ = sent_step(answers=False, kept=True)
    cast(Told, work.tokens_sent).error = RuntimeError("no peer")
    with pytest.raises(RuntimeError, match="no peer"):
        sink.result(work)
