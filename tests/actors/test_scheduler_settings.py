"""What of the settings reaches the scheduler."""

from __future__ import annotations

import pytest

from penstock.actors.scheduler_settings import max_model_len, scheduler_config
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import read_model_config
from penstock.errors import ConfigError
from penstock.scheduler.cost import StepCost

from .fake_engine import DEMO

MODEL = read_model_config(DEMO)


def test_the_scheduler_gets_the_engines_words_resolved() -> None:
    config = EngineConfig(pipeline_parallel_size=3, max_num_seqs=7, block_size=8, enable_prefix_caching=False)
    made = scheduler_config(config, MODEL, num_blocks=40, epoch=2)
    assert (made.num_stages, made.max_num_seqs, made.block_size, made.num_blocks, made.epoch) == (3, 7, 8, 40, 2)
    assert (made.policy, made.max_unretired_plans, made.enable_prefix_caching) == ("token_throttling", 4, False)
    assert (made.vocab_size, made.max_model_len) == (MODEL.vocab_size, MODEL.max_model_len)


def test_a_measured_cost_reaches_the_scheduler_with_its_bound() -> None:
    cost = StepCost(1e-5, 100.0, 1e-8, 1e-4)
    made = scheduler_config(EngineConfig(max_decode_slowdown=1.3), MODEL, num_blocks=40, step_cost=cost)
    assert (made.step_cost, made.max_decode_slowdown) == (cost, 1.3)
    assert scheduler_config(EngineConfig(), MODEL, num_blocks=40).step_cost is None


def test_a_sequence_may_be_kept_shorter_than_the_model_allows_but_not_longer() -> None:
    assert max_model_len(EngineConfig(max_model_len=99), MODEL) == 99
    longer = MODEL.max_model_len + 1
    with pytest.raises(ConfigError, match=f"max_model_len is {longer}, but the model's positions end at {longer - 1}"):
        max_model_len(EngineConfig(max_model_len=longer), MODEL)
