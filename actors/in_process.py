"""The pipeline in one process: the same scheduler, stage schedulers, plan bytes and model, without Ray or sockets.

For tests and for measuring: links are queues between threads, results come back through a queue, optionally late.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig
from ..model.stage import StagePorts, build_stage
from ..model.tensor_parallel import NoTensorParallel, TensorParallel, ThreadTensorParallel
from ..scheduler.codec import decode_plan, decode_result, encode_plan, encode_result
from ..scheduler.messages import TokenEvent
from ..scheduler.plan import StepResult
from ..scheduler.scheduler import Scheduler
from ..scheduler.stage_scheduler import StageScheduler
from .links import ThreadLink

_TIMEOUT_S = 120.0  # of a result


class PipelineDriver:
    """Publishes a scheduler's plans to stage schedulers and feeds their results back."""

    def __init__(self, scheduler: Scheduler, result_delay_s: float = 0.0) -> None:
        self.scheduler = scheduler
        self.ranks: list[StageScheduler] = []
        self.num_steps = 0
        self._delay_s = result_delay_s
        self._results: SimpleQueue[tuple[float, bytes] | BaseException] = SimpleQueue()

    def on_result(self, result: StepResult) -> None:
        """The last stage's callback."""
        self._results.put((time.monotonic() + self._delay_s, encode_result(result)))

    def on_failure(self, error: BaseException) -> None:
        """Every stage's callback."""
        self._results.put(error)

    def publish(self) -> None:
        """Hands out every plan that may be handed out now."""
        while (plan := self.scheduler.schedule()) is not None:
            data = encode_plan(plan)
            self.num_steps += 1
            for rank in self.ranks:
                rank.submit(decode_plan(data))

    def retire(self) -> None:
        """Waits for the next result, when one is due, and takes it in."""
        if not self.scheduler.num_unretired:
            return
        item = self._next_result()
        if isinstance(item, BaseException):
            raise item
        due, data = item
        time.sleep(max(0.0, due - time.monotonic()))
        self.scheduler.update(decode_result(data))

    def _next_result(self) -> tuple[float, bytes] | BaseException:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while True:
            are_polled = sum(rank.poll() for rank in self.ranks) > 0  # all of them
            try:
                return self._results.get(block=not are_polled, timeout=_TIMEOUT_S)
            except Empty:
                if time.monotonic() > deadline_s:
                    raise

    def run(self) -> Iterator[TokenEvent]:
        """Steps until every request is answered; yields the events as they come."""
        while self.scheduler.num_unfinished or self.scheduler.num_unretired:
            self.publish()
            self.retire()
            yield from self.scheduler.take_events()

    def close(self) -> None:
        """Ends the stages' threads."""
        for rank in self.ranks:
            rank.close()


def start_in_process(
    config: EngineConfig, model_config: ModelConfig, scheduler: Scheduler, num_blocks: int
) -> PipelineDriver:
    """Builds every rank of every stage in this process; `config.model` is a folder."""
    driver = PipelineDriver(scheduler, config.result_delay_ms / 1000)
    stages, width = config.pipeline_parallel_size, config.tensor_parallel_size
    groups = [_tensor_parallel(width) for _ in range(stages)]
    for tp_rank in range(width):
        edges = [ThreadLink() for _ in range(stages)]  # edges[k]: from stage k on; the last one is the tokens' way back
        for stage_idx in range(stages):
            ports = _ports(edges, stage_idx, groups[stage_idx][tp_rank])
            rank = build_stage(
                config,
                model_config,
                stage_idx=stage_idx,
                tp_rank=tp_rank,
                num_blocks=num_blocks,
                ports=ports,
                on_result=driver.on_result,
                on_failure=driver.on_failure,
            )
            driver.ranks.append(rank)
    return driver


def _tensor_parallel(width: int) -> Sequence[TensorParallel]:
    return [NoTensorParallel()] if width == 1 else ThreadTensorParallel.group(width)


def _ports(edges: list[ThreadLink], stage_idx: int, tp: TensorParallel) -> StagePorts:
    last = len(edges) - 1
    return StagePorts(
        tensor_parallel=tp,
        upstream=edges[stage_idx - 1] if stage_idx > 0 else None,
        downstream=edges[stage_idx] if stage_idx < last else None,
        token_send=edges[last] if 0 < stage_idx == last else None,
        token_receive=edges[last] if stage_idx == 0 < last else None,
    )
