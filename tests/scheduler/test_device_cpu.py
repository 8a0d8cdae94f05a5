"""The CPU device: lanes run in order, events join them, errors travel with events, waits name their cause."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from penstock.scheduler.cpu_device import CpuDevice
from penstock.scheduler.timeline import Timeline


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    device = CpuDevice(Timeline(keep_spans=True))
    yield device
    device.close()


def test_a_lane_runs_its_work_in_the_order_of_enqueueing(device: CpuDevice) -> None:
    seen: list[object] = []
    events = [device.enqueue("compute", partial(seen.append, i), cause="compute", step=i) for i in range(50)]
    events[-1].wait()
    assert seen == list(range(50))


def test_work_waits_for_an_event_of_another_lane_and_enqueue_returns_at_once(device: CpuDevice) -> None:
    seen: list[object] = []

    def arrive() -> None:
        time.sleep(0.05)
        seen.append("received")

    received = device.enqueue("receive", arrive, cause="activations", step=3)
    computed = device.enqueue("compute", lambda: seen.append("computed"), [received], cause="compute", step=3)
    assert not computed.done()
    computed.wait()
    assert seen == ["received", "computed"]
    waits = [s for s in device.timeline.spans if s.is_wait and s.lane == "compute" and s.name != "wait: plan"]
    assert [(s.step, s.name) for s in waits] == [(3, "wait: activations")]


def fail() -> None:
    raise ZeroDivisionError


def test_an_error_fails_what_waits_for_it_and_nothing_else(device: CpuDevice) -> None:
    failed = device.enqueue("receive", fail, cause="activations", step=0)
    ran: list[str] = []
    dependent = device.enqueue("compute", lambda: ran.append("dependent"), [failed], cause="compute", step=0)
    other = device.enqueue("compute", lambda: ran.append("other"), cause="compute", step=1)
    other.wait()
    assert ran == ["other"]
    assert dependent.done()
    with pytest.raises(ZeroDivisionError):
        dependent.wait()


def test_an_idle_compute_lane_waits_for_a_plan_by_name(device: CpuDevice) -> None:
    device.enqueue("compute", lambda: None, cause="compute", step=0).wait()
    device.enqueue("compute", lambda: None, cause="compute", step=1).wait()
    assert set(device.timeline.totals.wait_ns) <= {"plan"}
    assert device.timeline.totals.steps == 2


def test_the_wait_of_a_lane_that_has_nothing_to_do_is_told_and_not_that_of_one_that_works(device: CpuDevice) -> None:
    timeline = device.timeline
    assert timeline.so_far().waiting_ns == 0, "before the first step"
    timeline.launched(0, 0, 0)
    device.enqueue("compute", lambda: None, cause="compute", step=0).wait()
    first, second = timeline.so_far().waiting_ns, timeline.so_far().waiting_ns
    assert 0 < first <= second
    timeline.launched(1, 0, 0)
    assert timeline.so_far().waiting_ns == 0


def test_close_ends_every_lane_thread() -> None:
    device = CpuDevice(name="closing")
    device.enqueue("compute", lambda: None, cause="compute", step=0)
    device.enqueue("send", lambda: None, cause="send_buffer", step=0)
    device.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("closing")]
