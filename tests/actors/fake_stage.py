"""A stage without a model, for tests of the actors: it samples a fixed function of position, over real links."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import ModelConfig
from penstock.model.gpu.measure import DeviceFigures, Measured
from penstock.model.grammar_compiler import GrammarCompiler
from penstock.model.stage import StagePorts
from penstock.scheduler.cost import StepCost
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import StepPlan, StepResult
from penstock.scheduler.timeline import Timeline, now_ns


def next_token(position: int) -> int:
    """What the fake model says after the token at this position."""
    return (position + 1) % 50


class FakeStage:
    """Passes one number along the pipeline for each step, and answers from the last stage."""

    def __init__(
        self,
        mirror: Mirror,
        ports: StagePorts,
        on_result: Callable[[StepResult], None] | None,
        on_failure: Callable[[BaseException], None],
        step_s: float,
        last_step: int = 1 << 30,
    ) -> None:
        self.last_retired_step = -1
        self.timeline = Timeline()
        self._mirror, self._ports, self._step_s, self._last_step = mirror, ports, step_s, last_step
        self._on_result, self._on_failure = on_result, on_failure
        self._plans: SimpleQueue[StepPlan | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def poll(self) -> bool:
        """A thread of its own retires."""
        return False

    def submit(self, plan: StepPlan) -> None:
        self._plans.put(plan)

    def close(self) -> None:
        self._plans.put(None)

    def _run(self) -> None:
        try:
            while (plan := self._plans.get()) is not None:
                self._step(plan)
        except BaseException as error:
            self._on_failure(error)

    def _step(self, plan: StepPlan) -> None:
        if plan.step > self._last_step:
            raise ValueError(f"step {plan.step} is one too many")
        inputs = self._mirror.apply(plan)
        number = torch.tensor([plan.step], dtype=torch.int64)
        if self._ports.upstream is not None:
            received = torch.empty_like(number)
            self._ports.upstream.receive(received)
            assert torch.equal(received, number)
        start = now_ns()
        time.sleep(self._step_s)
        self.timeline.work("compute", plan.step, "compute", start, now_ns())
        if self._ports.downstream is not None:
            self._ports.downstream.send(number)
        self.last_retired_step = plan.step
        if self._on_result is not None:
            tokens = [next_token(int(inputs.seq_lens[row]) - 1) for row in inputs.sample_rows]
            self._on_result(StepResult(plan.step, np.array(tokens, np.int32), plan.epoch))


def build(
    config: EngineConfig,
    model_config: ModelConfig,
    *,
    stage_idx: int,
    tp_rank: int,
    num_blocks: int,
    ports: StagePorts,
    on_result: Callable[[StepResult], None],
    on_failure: Callable[[BaseException], None],
    on_measured: Callable[[Measured], None],
    grammars: GrammarCompiler | None = None,
    step_s: float = 0.002,
    last_step: int = 1 << 30,
) -> FakeStage:
    """Stands in for `penstock.model.stage.build_stage`."""
    last = stage_idx == config.pipeline_parallel_size - 1 and tp_rank == 0
    max_blocks = -(-(config.max_model_len or 512) // config.block_size)
    mirror = Mirror(config.max_num_seqs, max_blocks, config.block_size)
    return FakeStage(mirror, ports, on_result if last else None, on_failure, step_s, last_step)


def build_breaking(*args: Any, **kwargs: Any) -> FakeStage:
    """A stage that raises at step 3."""
    return build(*args, **kwargs, last_step=2)


def build_measured(*args: Any, **kwargs: Any) -> FakeStage:
    """A stage that measured itself; the second is the slower one."""
    cost = StepCost(1e-5, 100.0, 1e-9, 1e-3 * (1 + kwargs["stage_idx"]))
    kwargs["on_measured"](Measured(DeviceFigures(4e12, 6e14), cost))
    return build(*args, **kwargs)


def build_nothing(*args: Any, **kwargs: Any) -> FakeStage:
    """A stage that can't be made."""
    raise ValueError("no stage today")
