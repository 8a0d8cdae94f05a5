"""The scheduler as a whole, one behaviour at a time; `random_load` puts them together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.scheduler import outbox
from penstock.scheduler.config import SchedulerConfig
from penstock.scheduler.plan import MAX_REGISTRATIONS, Sampling, StepResult, ints

from .fake_pipeline import Pipeline

CONFIG = SchedulerConfig(num_blocks=64, block_size=4, max_num_seqs=8, max_model_len=128, vocab_size=1000)
SMALL = replace(CONFIG, num_blocks=8, kv_reserve=0.0, enable_prefix_caching=False)


def test_an_idle_scheduler_has_no_plan() -> None:
    assert Pipeline(CONFIG).schedule() is None


def test_prefill_fills_the_budget_in_chunks_and_several_prompts_share_a_step() -> None:
    pipeline = Pipeline(replace(CONFIG, max_num_batched_tokens=10))
    pipeline.submit(range(14), 3)
    pipeline.submit(range(20, 25), 3)
    first, second = pipeline.schedule(), pipeline.schedule()
    assert first is not None
    assert second is not None
    assert first.num_tokens.tolist() == [10]
    assert second.num_tokens.tolist() == [4, 5]
    pipeline.run()


def test_a_burst_of_short_prompts_is_admitted_over_several_steps() -> None:
    pipeline = Pipeline(replace(CONFIG, num_blocks=256, max_num_seqs=100))
    for index in range(100):
        pipeline.submit([index + 1], 9)
    plan = pipeline.schedule()
    assert plan is not None
    assert len(plan.registrations) == MAX_REGISTRATIONS
    pipeline.run()


def test_a_step_is_never_planned_past_max_tokens() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([1, 2, 3], 3)
    pipeline.run()
    assert [plan.num_tokens.tolist() for plan in pipeline.plans] == [[3], [1], [1]]


def test_no_more_plans_than_allowed_are_unretired() -> None:
    pipeline = Pipeline(replace(CONFIG, num_stages=4, max_unretired_plans=6, max_num_batched_tokens=4))
    for index in range(8):
        pipeline.submit([index + 1] * 3, 20)
    while pipeline.schedule():
        pass
    assert pipeline.scheduler.num_unretired == len(pipeline.results) == 6


def test_a_token_after_the_stop_is_dropped_with_its_slot() -> None:
    free = Pipeline(CONFIG)
    output = free.submit([1, 2, 3], 10).output
    free.run()
    pipeline = Pipeline(CONFIG)
    seen = pipeline.submit([1, 2, 3], 10, eos_token_ids=(output[2],))
    for _ in range(2):
        pipeline.schedule()
    while seen.finish_reason is None:
        pipeline.retire()
        pipeline.schedule()
    assert pipeline.results, "a step in flight samples past the stop"
    next_one = pipeline.submit([4, 5, 6], 4)
    pipeline.run()
    assert (seen.output, seen.finish_reason) == (output[:3], "stop")
    assert next_one.finish_reason == "length"


def test_released_slots_ride_along_with_the_next_plan() -> None:
    pipeline = Pipeline(replace(CONFIG, max_num_seqs=1))
    pipeline.submit([1, 2], 1)
    pipeline.submit([3, 4], 1)
    pipeline.schedule()
    pipeline.retire()
    plan = pipeline.schedule()
    assert plan is not None
    assert plan.released.tolist() == [0]
    assert [(r.slot, r.generation) for r in plan.registrations] == [(0, 1)]


@pytest.mark.parametrize("when", ["waiting", "prefilling", "decoding", "last token planned"])
def test_an_abort_at_any_moment_frees_everything(when: str) -> None:
    pipeline = Pipeline(replace(CONFIG, max_num_batched_tokens=4))
    seen = pipeline.submit(range(6), 2 if when == "last token planned" else 20, name="it")
    for _ in range(["waiting", "prefilling", "decoding"].index(when) if when != "last token planned" else 3):
        pipeline.step()
    pipeline.abort("it")
    assert seen.finish_reason == "abort"
    stats = pipeline.scheduler.stats()
    assert (stats.held_blocks, stats.running, stats.waiting) == (0, 0, 0)
    pipeline.run()


def test_a_client_that_is_gone_loses_all_its_requests_and_nobody_elses() -> None:
    pipeline = Pipeline(CONFIG)
    seen = pipeline.submit([1, 2], 5)
    for name in ("a", "b"):
        pipeline.submit([1, 2], 5, name=name, client_id="gone")
    pipeline.schedule()
    pipeline.scheduler.abort_client("gone")
    pipeline.run()
    assert [pipeline.clients[name].finish_reason for name in ("a", "b")] == ["abort", "abort"]
    assert seen.finish_reason == "length"


def test_the_latest_arrival_is_preempted_keeps_its_tokens_and_resumes_first() -> None:
    pipeline = Pipeline(SMALL)
    first, second = pipeline.submit([1] * 8, 16), pipeline.submit([2] * 8, 16)
    third = pipeline.submit([3] * 8, 16)
    pipeline.run()
    assert pipeline.scheduler.stats().num_preemptions > 0
    resumed = [r for plan in pipeline.plans for r in plan.registrations if len(r.token_ids) > r.num_prompt_tokens]
    assert resumed
    assert all(r.num_prompt_tokens == 8 for r in resumed)
    assert all(r.token_ids[0] != 1 for r in resumed), "the earliest is never preempted"
    assert [len(seen.output) for seen in (first, second, third)] == [16, 16, 16]


def test_preemptions_raise_the_reserve() -> None:
    pipeline = Pipeline(SMALL)
    for index in range(3):
        pipeline.submit([index + 1] * 8, 16)
    while not pipeline.scheduler.stats().num_preemptions:
        pipeline.step()
    assert pipeline.scheduler.stats().reserve > SMALL.kv_reserve


def test_two_chunked_prompts_that_hold_the_whole_cache_between_them_both_finish() -> None:
    pipeline = Pipeline(replace(SMALL, max_num_batched_tokens=4, async_scheduling=False))
    seen = [pipeline.submit([index + 1] * 28, 4) for index in range(2)]
    pipeline.run()
    assert [x.finish_reason for x in seen] == ["length", "length"]


def test_prompt_logprobs_survive_a_preemption_without_a_gap_or_a_repeat() -> None:
    asked = Sampling(num_logprobs=0, num_prompt_logprobs=0)
    pipeline = Pipeline(replace(SMALL, max_num_batched_tokens=6))
    pipeline.submit([1] * 10, 20)
    for index in range(2):
        pipeline.submit([index + 2] * 10, 20, sampling=asked)
    pipeline.run()  # checks every answer
    assert pipeline.scheduler.stats().num_preemptions > 0


def test_a_preempted_prompt_midway_is_scored_again_and_one_that_was_scored_is_not() -> None:
    asked = Sampling(num_prompt_logprobs=0)
    pipeline = Pipeline(SMALL)
    pipeline.submit([1] * 8, 16)
    pipeline.submit([2] * 8, 16, sampling=asked)
    pipeline.run()
    registrations = [r for plan in pipeline.plans for r in plan.registrations if r.token_ids[0] == 2]
    assert [r.sampling.num_prompt_logprobs for r in registrations] == [0, -1]


def test_a_result_of_another_epoch_is_ignored_and_one_out_of_order_is_not() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([1, 2], 5)
    pipeline.schedule()
    pipeline.scheduler.update(StepResult(0, ints([5]), epoch=7))
    assert pipeline.scheduler.num_unretired == 1
    with pytest.raises(AssertionError, match="step 3 came, 0 was expected"):
        pipeline.scheduler.update(StepResult(3, ints([5])))
    pipeline.run()


def test_when_the_engine_fails_every_request_is_answered_and_late_results_are_harmless() -> None:
    pipeline = Pipeline(replace(CONFIG, max_num_seqs=2))
    seen = [pipeline.submit([index + 1] * 3, 9) for index in range(4)]
    pipeline.schedule()
    pipeline.scheduler.fail_all("stage 1 died")
    pipeline.collect()
    assert [(x.finish_reason, x.error) for x in seen] == [("error", "stage 1 died")] * 4
    pipeline.submit([1, 2], 4)
    pipeline.run()


def test_a_client_catches_up_with_one_event_from_the_token_log() -> None:
    pipeline = Pipeline(CONFIG)
    seen = pipeline.submit([1, 2, 3], 9, sampling=Sampling(num_logprobs=0, num_prompt_logprobs=0), name="it")
    while len(seen.output) < 5:
        pipeline.step()
    midway = pipeline.scheduler.catch_up("", "it", 2)
    assert midway is not None
    assert (midway.start, midway.token_ids.tolist(), midway.finish_reason) == (2, seen.output[2:], None)
    assert len(midway.logprobs) == 3
    assert pipeline.scheduler.catch_up("", "it", 5) is None
    pipeline.run()
    event = pipeline.scheduler.catch_up("", "it", 0)
    assert event is not None
    assert (event.token_ids.tolist(), event.finish_reason) == (seen.output, "length")
    assert len(event.prompt_logprobs) == len(seen.prompt_logprobs) == 1


def test_a_finished_request_is_known_until_it_is_forgotten() -> None:
    pipeline = Pipeline(CONFIG)
    pipeline.submit([1, 2, 3], 2, name="it")
    pipeline.run()
    assert pipeline.scheduler.catch_up("", "it", 2) is not None
    pipeline.scheduler.forget("", "it")
    assert pipeline.scheduler.catch_up("", "it", 0) is None


def test_logs_that_nobody_forgets_are_bounded_and_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "KEPT_TOKENS", 20)
    pipeline = Pipeline(CONFIG)
    for name in ("a", "b", "c", "d"):
        pipeline.submit([1, 2, 3], 5, name=name)  # 8 tokens each
        pipeline.run()
    known = [name for name in "abcd" if pipeline.scheduler.catch_up("", name, 0)]
    assert known == ["c", "d"]


def test_a_request_id_may_be_used_again_after_its_end() -> None:
    pipeline = Pipeline(CONFIG)
    for _ in range(3):
        seen = pipeline.submit([1, 2, 3], 1, name="again")
        pipeline.num_sampled.clear()
        pipeline.run()
        assert seen.finish_reason == "length"
    assert pipeline.scheduler._life.outbox.num_kept_tokens == 4


def test_a_prompt_larger_than_what_the_reserve_leaves_is_admitted_when_nothing_else_runs() -> None:
    pipeline = Pipeline(replace(CONFIG, num_blocks=10, kv_reserve=0.5))
    seen = pipeline.submit(range(36), 4)
    pipeline.run()
    assert seen.finish_reason == "length"


def test_generations_wrap_within_sixteen_bits() -> None:
    pipeline = Pipeline(replace(CONFIG, max_num_seqs=1))
    pipeline.scheduler._life.table.generation[0] = (1 << 15) - 1
    for name in ("a", "b"):
        pipeline.submit([1, 2, 3], 1, name=name)
    pipeline.run()
    assert [r.generation for plan in pipeline.plans for r in plan.registrations] == [(1 << 15) - 1, 0]


@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_a_decode_that_must_give_way_to_an_older_prompt_does_so_without_a_hang(num_stages: int) -> None:
    config = replace(SMALL, num_blocks=7, num_stages=num_stages, max_unretired_plans=num_stages + 1)
    pipeline = Pipeline(replace(config, max_num_batched_tokens=4, async_scheduling=False))
    older = pipeline.submit([1] * 24, 4)
    younger = pipeline.submit([2] * 4, 20)
    pipeline.run()
    assert pipeline.scheduler.stats().num_preemptions > 0
    assert (len(older.output), len(younger.output)) == (4, 20)
