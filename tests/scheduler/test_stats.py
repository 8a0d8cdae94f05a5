"""What the scheduler tells of itself: counts that add up, and times that it carries without reading them."""

from __future__ import annotations

import io
from dataclasses import replace

from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.record import Recorder
from penstock.scheduler.scheduler import Scheduler

from .fake_pipeline import Pipeline

CONFIG = SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=8, max_model_len=128, vocab_size=1000)
TIGHT = replace(CONFIG, num_blocks=8, kv_reserve=0.0, enable_prefix_caching=False)


def test_final_events_and_tokens_add_up() -> None:
    pipeline = Pipeline(replace(CONFIG, max_num_batched_tokens=4))
    seen = [pipeline.submit(range(6), 5, name="runs"), pipeline.submit(range(3), 5, name="aborted")]
    seen.append(pipeline.submit(range(200), 1))
    pipeline.step()
    pipeline.submit(range(9), 5, name="never planned")
    pipeline.abort("never planned")
    assert pipeline.scheduler.stats().prefilling == 1
    pipeline.step()
    pipeline.abort("aborted")
    pipeline.run()
    stats = pipeline.scheduler.stats()
    assert stats.num_finished == {"stop": 0, "length": 1, "abort": 2, "error": 1}
    assert stats.num_prompt_tokens == 6 + 3
    assert stats.num_generated_tokens == sum(len(each.output) for each in seen)


def test_a_request_is_planned_for_the_first_time_once_also_if_it_is_preempted() -> None:
    pipeline = Pipeline(TIGHT)
    for arrived_s in (1.0, 2.0, 3.0):
        pipeline.submit([1] * 8, 16, arrived_s=arrived_s)
    told: list[float] = []
    while pipeline.scheduler.num_unfinished:
        planned = pipeline.schedule() is not None
        told += pipeline.scheduler.first_planned_s
        assert planned or not pipeline.scheduler.first_planned_s
        if not planned:
            pipeline.retire()
    assert pipeline.scheduler.stats().num_preemptions > 0
    assert told == [1.0, 2.0, 3.0]


def test_times_of_arrival_change_neither_plans_nor_the_record() -> None:
    runs = []
    for late_s in (0.0, 1e9):
        file = io.BytesIO()
        pipeline = Pipeline(TIGHT, Recorder(Scheduler(TIGHT), file))
        for index in range(6):
            pipeline.submit([index] * 8, 16, arrived_s=late_s - index)
        pipeline.run()
        runs.append((pipeline.plan_bytes, file.getvalue()))
    assert runs[0] == runs[1]
