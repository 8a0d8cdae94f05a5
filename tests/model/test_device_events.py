"""The GPU's device over streams and events that are not there: which events of CUDA's are used again, and when."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from penstock.model.gpu import clock, device
from penstock.model.gpu.device import CudaDevice, CudaEvent
from penstock.scheduler.device import Lane


class FakeEvent:
    """An event of a device that is as far as `FakeEvent.now_ms`; each recording takes a millisecond."""

    now_ms = 0.0
    made = 0

    def __init__(self) -> None:
        FakeEvent.made += 1
        self.at_ms = 0.0

    def record(self, stream: object = None) -> None:
        FakeEvent.now_ms += 1.0
        self.at_ms = FakeEvent.now_ms

    def query(self) -> bool:
        return True

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at_ms - self.at_ms


class FakeStream:
    def __init__(self, priority: int = 0) -> None: ...

    def wait_event(self, event: FakeEvent) -> None: ...


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    monkeypatch.setattr(FakeEvent, "now_ms", 0.0)
    monkeypatch.setattr(FakeEvent, "made", 0)
    for module in (device, clock):
        monkeypatch.setattr(module, "timing_event", FakeEvent)
        monkeypatch.setattr(module, "now_ns", lambda: int(FakeEvent.now_ms * 1e6))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "default_stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return CudaDevice()


def run(cuda: CudaDevice, lane: Lane, step: int, after: Any = ()) -> CudaEvent:
    return cuda.enqueue(lane, lambda: None, after, cause="compute", step=step)


def test_events_are_used_again_once_nobody_holds_them(cuda: CudaDevice) -> None:
    for step in range(50):
        received = run(cuda, "receive", step)
        run(cuda, "compute", step, [received]).wait()
    assert FakeEvent.made <= 8
    assert cuda.timeline.totals.steps == 50


def test_an_event_that_somebody_holds_keeps_its_time(cuda: CudaDevice) -> None:
    held = run(cuda, "compute", 0)
    end, at_ms = held.end, held.end.at_ms  # type: ignore[attr-defined]
    for step in range(1, 20):
        event = run(cuda, "compute", step)
        event.wait()
        assert event.end is not end
    assert end.at_ms == at_ms  # type: ignore[attr-defined]


def test_the_clocks_anchor_is_not_used_again(cuda: CudaDevice) -> None:
    starts_ns = []
    for step in range(40):
        FakeEvent.now_ms += 400.0  # the anchor moves every third step
        event = run(cuda, "compute", step)
        event._was_running = True
        event.wait()
        event.wait()  # whoever asks twice changes nothing
        assert cuda._clock._anchor not in cuda.spare_events
        starts_ns.append(cuda.timeline.totals.last_end_ns)
    gaps_ms = {round((b - a) / 1e6) for a, b in itertools.pairwise(starts_ns)}
    assert gaps_ms == {402}
