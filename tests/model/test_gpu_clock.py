"""The device's clock on the host's: it follows a drift, and no host that looks late."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from penstock.model.gpu import clock
from penstock.model.gpu.clock import DeviceClock

OFFSET_NS = 5_000_000_000


@dataclass
class Moment:
    """An event of a device, as far as the clock asks."""

    device_ms: float = 0.0

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, other: Moment) -> float:
        return other.device_ms - self.device_ms


@dataclass
class Marker:
    end: Moment = field(default_factory=Moment)


@pytest.mark.parametrize(
    ("drift", "lag_ns"), [(20e-6, 15_000), (-20e-6, 15_000), (0.0, 400_000_000), (50e-6, 3_000_000)]
)
def test_events_keep_their_times_while_the_host_comes_late(
    monkeypatch: pytest.MonkeyPatch, drift: float, lag_ns: int
) -> None:
    monkeypatch.setattr(clock, "timing_event", Moment)
    monkeypatch.setattr(clock, "now_ns", lambda: OFFSET_NS)
    device = DeviceClock()
    for second in range(1, 61):
        event = Moment(second * 1000.0)
        happened_ns = OFFSET_NS + int(second * 1e9 * (1 + drift))
        assert abs(device.ns(event) - happened_ns) < 200_000 * second  # type: ignore[arg-type]
        device.seen(Marker(event), happened_ns + lag_ns)  # type: ignore[arg-type]
    for second in range(61, 70):  # on time again
        event = Moment(second * 1000.0)
        device.seen(Marker(event), OFFSET_NS + int(second * 1e9 * (1 + drift)) + 10_000)  # type: ignore[arg-type]
    final_ns = OFFSET_NS + int(70e9 * (1 + drift))
    assert abs(device.ns(Moment(70_000.0)) - final_ns) < 200_000  # type: ignore[arg-type]
