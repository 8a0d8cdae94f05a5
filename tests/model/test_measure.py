"""Times of steps and of the device: the first run is not counted, an odd one doesn't matter."""

from __future__ import annotations

import pytest
import torch

from penstock.model.gpu import measure
from penstock.model.gpu.measure import device_figures, measure_steps
from penstock.scheduler.cost import StepShape


class Clock:
    """A device whose time passes only as work says."""

    def __init__(self) -> None:
        self.now_ms = 0.0

    def event(self) -> Mark:
        return Mark(self)


class Mark:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def record(self) -> None:
        self.at_ms = self.clock.now_ms

    def elapsed_time(self, later: Mark) -> float:
        return later.at_ms - self.at_ms


def test_a_steps_time_is_the_median_of_its_runs_but_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, runs = Clock(), list[StepShape]()
    monkeypatch.setattr(measure, "timing_event", clock.event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    first, second = StepShape(8, 100), StepShape(0, 0, 32)

    def run_step(shape: StepShape) -> None:
        is_odd = runs.count(shape) in (0, 3)
        runs.append(shape)
        clock.now_ms += 1000.0 if is_odd else 2.0 if shape == first else 5.0

    samples = measure_steps(run_step, [first, second])
    assert [(sample.shape, sample.seconds) for sample in samples] == [(first, 0.002), (second, 0.005)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_figures_are_plausible_and_its_memory_is_given_back() -> None:
    reserved = torch.cuda.memory_reserved()
    figures = device_figures()
    assert 2e11 < figures.bytes_per_s < 2e13
    assert 2e13 < figures.flops_per_s < 5e15
    assert torch.cuda.memory_reserved() <= reserved + (64 << 20)
