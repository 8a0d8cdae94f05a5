"""Layers are shared out by what a step costs each stage."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from penstock.configs.engine import EngineConfig
from penstock.configs.model_config import ModelConfig
from penstock.configs.rope_config import RopeConfig
from penstock.errors import ConfigError
from penstock.model.layer_span import LayerSpan
from penstock.model.partition import StepCosts, partition_for, partition_layers, step_costs

MODEL = ModelConfig(
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


def sizes(config: ModelConfig, num_stages: int, explicit: list[float] | None = None) -> list[float]:
    spans = partition_layers(config, num_stages, explicit)
    for layers in ([i for span in spans for i in span.attentions], [i for span in spans for i in span.mlps]):
        assert layers == list(range(config.num_hidden_layers))
    return [span.num_layers for span in spans]


def test_one_stage_takes_everything() -> None:
    assert sizes(MODEL, 1) == [11]


def test_half_a_layers_cost_is_its_weights_and_the_heads_its_matrix() -> None:
    assert step_costs(MODEL) == StepCosts(64 * 64 * 2 + 64 * 16 * 2 + 64, 3 * 64 * 128 + 64, 300 * 64)


def test_a_large_vocabulary_relieves_the_last_stage() -> None:
    assert sizes(replace(MODEL, vocab_size=1), 4) == [3, 3, 2.5, 2.5]
    assert sizes(replace(MODEL, vocab_size=1600), 4) == [3.5, 3.5, 3, 1]


@pytest.mark.parametrize("vocab_size", [10, 300, 900, 5000])
@pytest.mark.parametrize("num_stages", [2, 3, 4, 6])
def test_no_other_partition_has_a_cheaper_slowest_stage(vocab_size: int, num_stages: int) -> None:
    config = replace(MODEL, num_hidden_layers=6, vocab_size=vocab_size)
    costs = step_costs(config)

    def slowest(spans: list[LayerSpan]) -> int:
        return max([costs.of(span) for span in spans[:-1]] + [costs.of(spans[-1]) + costs.head])

    cuts = ([0, *inner, 12] for inner in combinations(range(2, 11), num_stages - 1))
    others = [[LayerSpan(a, b) for a, b in pairwise(cut)] for cut in cuts]
    best = min(slowest(spans) for spans in others if all(span.num_layers >= 1 for span in spans))
    assert slowest(partition_layers(config, num_stages)) == best


def test_a_given_partition_is_taken_as_it_is() -> None:
    assert sizes(MODEL, 3, [1, 9, 1]) == [1, 9, 1]
    assert sizes(MODEL, 3, [1.5, 8, 1.5]) == [1.5, 8, 1.5]


def test_a_cut_layer_has_its_attention_in_front_and_its_mlp_behind() -> None:
    first, second = partition_layers(MODEL, 2, [4.5, 6.5])
    assert (first.attentions, first.mlps) == (range(5), range(4))
    assert (second.attentions, second.mlps) == (range(5, 11), range(4, 11))


@pytest.mark.parametrize(
    ("num_stages", "explicit", "message"),
    [
        (12, None, "12 pipeline stages can't share 11 layers"),
        (0, None, "0 pipeline stages"),
        (2, [5, 5], r"\[5, 5\] adds up to 10, not to 11 layers"),
    ],
)
def test_what_does_not_add_up_is_refused(num_stages: int, explicit: list[float] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition_layers(MODEL, num_stages, explicit)


@pytest.mark.parametrize(
    ("device", "stages", "layers"), [("cpu", 2, [20, 16]), ("cuda", 2, [19, 17]), ("cuda", 4, [9.5, 9.5, 9.5, 7.5])]
)
def test_on_a_gpu_the_head_weighs_as_much_as_was_measured(device: str, stages: int, layers: list[float]) -> None:
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
    assert [span.num_layers for span in partition_for(engine, model)] == layers
