"""An engine's settings: defaults, limits, and messages that name the value and the limit."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.configs.engine import EngineConfig
from penstock.errors import ConfigError


def test_an_unknown_setting_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"'pipeline_paralel_size'; did you mean 'pipeline_parallel_size'\?"):
        EngineConfig(pipeline_paralel_size=2)


def test_a_name_like_no_setting_lists_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'zzz'; known are: async_scheduling, block_size"):
        EngineConfig(zzz=1)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("block_size", 0, "block_size is 0: .*greater than or equal to 1"),
        ("pipeline_parallel_size", -1, "pipeline_parallel_size is -1: .*greater than or equal to 1"),
        ("max_num_seqs", "many", "max_num_seqs is 'many': .*valid integer"),
        ("gpu_memory_utilization", 1.5, "gpu_memory_utilization is 1.5: .*less than or equal to 1"),
        ("dtype", "int3", "dtype is 'int3': .*'float32', 'bfloat16' or 'float16'"),
        ("load_format", "pickle", "load_format is 'pickle': .*'auto' or 'dummy'"),
        ("name", "a/b", "name is 'a/b'"),
        ("max_unretired_plans", 3, "max_unretired_plans is 3: with pipeline_parallel_size 1 it must be 2"),
        ("pipeline_layer_partition", [4, 4], r"\[4, 4\] names 2 stages, but pipeline_parallel_size is 1"),
        ("pipeline_layer_partition", [4.2], r"\[4.2\] cuts a layer elsewhere than into halves"),
        ("stage_timeout_s", 0.3, "stage_timeout_s 0.3 is below two heartbeats .*0.25"),
        ("min_prefill_tokens", 4096, "min_prefill_tokens 4096 is above max_prefill_tokens 2048"),
    ],
)
def test_a_wrong_value_is_refused_with_value_and_limit(setting: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**{setting: value})


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match=r"block_size is 0.*; unknown setting 'blok'"):
        EngineConfig(block_size=0, blok=1)


def test_two_ways_to_size_the_cache_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match=r"num_kv_blocks \(4\) and kv_cache_memory_bytes \(9\)"):
        EngineConfig(num_kv_blocks=4, kv_cache_memory_bytes=9)


def test_a_trace_and_a_record_are_two_files() -> None:
    with pytest.raises(ConfigError, match="trace and record are both 'run'"):
        EngineConfig(trace="run", record="run")


def test_a_stage_without_layers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[8, 0\] leaves a stage without layers"):
        EngineConfig(pipeline_parallel_size=2, pipeline_layer_partition=[8, 0])


@pytest.mark.parametrize(
    ("stages", "plans", "policy"), [(1, 2, "fill"), (2, 3, "token_throttling"), (4, 5, "token_throttling")]
)
def test_defaults_follow_the_number_of_stages(stages: int, plans: int, policy: str) -> None:
    config = EngineConfig(pipeline_parallel_size=stages)
    assert (config.unretired_plans, config.policy, config.world_size) == (plans, policy, stages)


def test_plans_in_flight_may_be_stages_plus_two() -> None:
    assert EngineConfig(pipeline_parallel_size=3, max_unretired_plans=5).unretired_plans == 5


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        EngineConfig().seed = 3


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in EngineConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"device": "cuda"}, 128),
        ({"device": "cuda", "pipeline_parallel_size": 2}, 128),
        ({"device": "cuda", "pipeline_parallel_size": 4}, 64),
        ({"device": "cuda", "pipeline_parallel_size": 16}, 32),
        ({"device": "cpu"}, 32),
        ({"device": "cuda", "max_prefill_tokens": 64}, 64),
        ({"device": "cuda", "min_prefill_tokens": 7}, 7),
    ],
)
def test_a_gpu_takes_more_prompt_tokens_at_least(settings: dict[str, Any], least: int) -> None:
    assert EngineConfig(**settings).least_prefill_tokens == least
