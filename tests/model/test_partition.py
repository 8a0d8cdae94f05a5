"""Layers are shared out by what a step costs each stage."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import ModelConfig
from penstock.configs.rope_config import RopeConfig
from penstock.errors import ConfigError
from penstock.model.partition import partition_for, partition_layers, step_costs

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=11,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=8,
    vocab_size=300,
    max_position_embeddings=512,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=1e4, rotary_dim=8),
)


def sizes(config: ModelConfig, num_stages: int, explicit: list[int] | None = None) -> list[int]:
    ranges = partition_layers(config, num_stages, explicit)
    assert [layer for r in ranges for layer in r] == list(range(config.num_hidden_layers))
    return [len(r) for r in ranges]


def test_one_stage_takes_everything() -> None:
    assert sizes(MODEL, 1) == [11]


def test_a_layers_cost_is_its_weights_and_the_heads_its_matrix() -> None:
    assert step_costs(MODEL) == (64 * 64 * 2 + 64 * 16 * 2 + 3 * 64 * 128 + 2 * 64, 300 * 64)


def test_a_large_vocabulary_relieves_the_last_stage() -> None:
    assert sizes(replace(MODEL, vocab_size=1), 4) == [3, 3, 3, 2]
    assert sizes(replace(MODEL, vocab_size=1600), 4) == [4, 3, 3, 1]


@pytest.mark.parametrize("vocab_size", [10, 300, 900, 5000])
@pytest.mark.parametrize("num_stages", [2, 3, 4, 11])
def test_no_other_partition_has_a_cheaper_slowest_stage(vocab_size: int, num_stages: int) -> None:
    config = replace(MODEL, vocab_size=vocab_size)
    layer, head = step_costs(config)

    def slowest(counts: list[int]) -> int:
        return max([count * layer for count in counts[:-1]] + [counts[-1] * layer + head])

    cuts = ([0, *inner, 11] for inner in combinations(range(1, 11), num_stages - 1))
    best = min(slowest([b - a for a, b in pairwise(cut)]) for cut in cuts)
    assert slowest(sizes(config, num_stages)) == best


def test_a_given_partition_is_taken_as_it_is() -> None:
    assert sizes(MODEL, 3, [1, 9, 1]) == [1, 9, 1]


@pytest.mark.parametrize(
    ("num_stages", "explicit", "message"),
    [
        (12, None, "12 pipeline stages can't share 11 layers"),
        (0, None, "0 pipeline stages"),
        (2, [5, 5], "adds up to 10, not to 11 layers"),
        (2, [5, 5, 1], "names 3 stages, there are 2"),
        (3, [11, 0, 0], "a stage without layers"),
    ],
)
def test_what_does_not_add_up_is_refused(num_stages: int, explicit: list[int] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition_layers(MODEL, num_stages, explicit)


@pytest.mark.parametrize(
    ("device", "stages", "layers"), [("cpu", 2, [20, 16]), ("cuda", 2, [19, 17]), ("cuda", 4, [10, 10, 9, 7])]
)
def test_on_a_gpu_the_head_weighs_as_many_layers_as_were_measured(device: str, stages: int, layers: list[int]) -> None:
    model = replace(
        MODEL,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        vocab_size=151936,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    )
    engine = EngineConfig(device=device, pipeline_parallel_size=stages)
    assert [len(part) for part in partition_for(engine, model)] == layers
