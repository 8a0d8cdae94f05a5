"""The tightest stage decides how many blocks every rank has."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from penstock.actors.cache_size import DEFAULT_BYTES, agreed_kv_blocks, bytes_per_block, num_kv_blocks
from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import ModelConfig, read_model_config
from penstock.errors import ConfigError


@pytest.fixture
def model(tiny_folder: str) -> ModelConfig:
    return read_model_config(tiny_folder)


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(**({"dtype": "float32"} | settings))


def test_a_block_holds_keys_and_values_of_a_stages_layers(model: ModelConfig) -> None:
    layer = 2 * 16 * 2 * 16 * 4
    uneven = config(pipeline_parallel_size=2, pipeline_layer_partition=[5, 3])
    assert bytes_per_block(uneven, model) == [5 * layer, 3 * layer]
    assert bytes_per_block(config(tensor_parallel_size=4), model) == [8 * layer / 2]
    assert bytes_per_block(config(dtype="bfloat16"), model) == [8 * layer / 2]


def test_the_tightest_stage_decides(model: ModelConfig) -> None:
    largest = 5 * 2 * 16 * 2 * 16 * 4
    settings = {"pipeline_parallel_size": 2, "pipeline_layer_partition": [3, 5]}
    assert num_kv_blocks(config(kv_cache_memory_bytes=100 * largest + 1, **settings), model) == 100


def test_a_fixed_number_is_taken_and_by_default_no_more_than_is_needed(model: ModelConfig) -> None:
    assert num_kv_blocks(config(num_kv_blocks=77), model) == 77
    assert num_kv_blocks(config(max_num_seqs=4, max_model_len=100), model) == 4 * 7
    most = DEFAULT_BYTES // bytes_per_block(config(), model)[0]
    assert num_kv_blocks(config(max_num_seqs=60000), model) == most


def test_a_cache_below_max_model_len_warns(model: ModelConfig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        num_kv_blocks(config(num_kv_blocks=3), model)
    assert "holds 48 tokens (3 blocks of 16), less than max_model_len 512" in caplog.text


def test_a_cache_that_gpus_measured_below_max_model_len_warns(
    model: ModelConfig, caplog: pytest.LogCaptureFixture
) -> None:
    on_gpus = config(device="cuda")
    with caplog.at_level(logging.WARNING):
        assert num_kv_blocks(on_gpus, model) == 0
        assert agreed_kv_blocks(on_gpus, model, [40, 32]) == 32
        assert agreed_kv_blocks(config(num_kv_blocks=3), model, [3, 3]) == 3
        assert not caplog.records
        assert agreed_kv_blocks(on_gpus, model, [40, 31]) == 31
    assert "holds 496 tokens (31 blocks of 16), less than max_model_len 512" in caplog.text


def test_a_cache_without_a_block_is_refused(model: ModelConfig) -> None:
    with pytest.raises(ConfigError, match="10 bytes of KV cache hold no block: one takes 32768 bytes"):
        num_kv_blocks(config(kv_cache_memory_bytes=10), model)
