"""The prefix cache, seen from outside: what is shared, from when on, and what never is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.scheduler import prefix
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.plan import Sampling

from .fake_pipeline import Pipeline, Seen

CONFIG = SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=8, max_model_len=128, vocab_size=1000)
PROMPT = list(range(10, 22))  # three blocks


def second_run(pipeline: Pipeline, prompt: list[int], **fields: Any) -> Seen:
    pipeline.run()
    seen = pipeline.submit(prompt, 4, **fields)
    pipeline.run()
    return seen


def test_a_second_prompt_finds_the_full_blocks_of_the_first() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([*PROMPT, 1], 4)
    assert second_run(pipeline, [*PROMPT, 2]).num_cached_tokens == 12


def test_a_full_hit_recomputes_its_last_block_into_a_private_one() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit(PROMPT, 4)
    assert second_run(pipeline, PROMPT).num_cached_tokens == 8
    assert pipeline.plans[-4].registrations[0].num_computed_tokens == 8


def test_a_difference_in_an_early_block_hides_equal_later_ones() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([*PROMPT, 1], 4)
    assert second_run(pipeline, [9, *PROMPT[1:], 1]).num_cached_tokens == 0


def test_a_prompt_is_shared_from_the_plan_that_writes_it_on() -> None:
    pipeline = Pipeline(CONFIG)
    first, second = pipeline.submit([*PROMPT, 1]), pipeline.submit([*PROMPT, 2])
    plan = pipeline.schedule()
    assert plan is not None
    assert [r.num_computed_tokens for r in plan.registrations] == [0, 12]
    pipeline.run()
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 12)


def test_generated_blocks_are_shared_once_their_tokens_are_known() -> None:
    pipeline = Pipeline(CONFIG)
    first = pipeline.submit(PROMPT, 10)
    pipeline.run()
    follow_up = pipeline.submit([*PROMPT, *first.output, 5], 2)
    pipeline.run()
    assert follow_up.num_cached_tokens == 20  # of 12 + 10, the last of which was never computed


def test_a_token_sampled_past_a_stop_is_never_hashed() -> None:
    free = Pipeline(CONFIG)
    output = free.submit(PROMPT, 10).output
    free.run()
    pipeline = Pipeline(replace(CONFIG, block_size=1, num_blocks=256))
    pipeline.submit(PROMPT, 10, stop_token_ids=(output[3],))
    assert second_run(pipeline, [*PROMPT, *output, 5]).num_cached_tokens == len(PROMPT) + 4


def test_prompt_logprobs_need_every_position_so_the_cache_is_not_read() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([*PROMPT, 1], 4)
    seen = second_run(pipeline, [*PROMPT, 1], sampling=Sampling(num_prompt_logprobs=0))
    assert seen.num_cached_tokens == 0
    assert sum(len(x.token_ids) for x in seen.prompt_logprobs) == len(PROMPT)


def test_without_prefix_caching_nothing_is_kept() -> None:
    pipeline = Pipeline(replace(CONFIG, enable_prefix_caching=False))
    pipeline.submit([*PROMPT, 1], 4)
    assert second_run(pipeline, [*PROMPT, 1]).num_cached_tokens == 0
    assert pipeline.scheduler.stats().cached_blocks == 0


def test_hashing_is_bounded_for_each_step_and_goes_on_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline(replace(CONFIG, num_blocks=128, max_model_len=400))
    prompt = [7] * 300  # 75 blocks
    pipeline.submit(prompt, 1)
    pipeline.run()
    monkeypatch.setattr(prefix, "HASHED_BLOCKS_PER_STEP", 10)
    pipeline.submit([1, 2, 3], 40)
    late = pipeline.submit(prompt, 1)
    pipeline.schedule()
    assert [len(r.token_ids) for r in pipeline.plans[-1].registrations] == [3]
    pipeline.run()
    assert late.num_cached_tokens == 296
