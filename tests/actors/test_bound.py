"""The bound of a pipeline is the one that the goals were set by, and follows from sizes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.actors.commands.bound import Speed, bound_tokens_per_s
from penstock.actors.commands.workloads import Request, make_workload
from penstock.configs.model_config import ModelConfig
from penstock.configs.rope_config import RopeConfig
from penstock.model.layer_span import LayerSpan

H200 = Speed(bytes_per_s=4.3e12, flops_per_s=620e12)
QWEN3_8B = ModelConfig(
    hidden_size=4096,
    intermediate_size=12288,
    num_hidden_layers=36,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=151936,
    max_position_embeddings=40960,
    rms_norm_eps=1e-6,
    rope=RopeConfig(theta=1e6, rotary_dim=128),
    qk_norm=True,
    dtype="bfloat16",
)
FOUR_STAGES = LayerSpan.in_turn([10, 10, 9, 7])
TWO_LAYERS = [LayerSpan.of(range(2))]
TINY = replace(QWEN3_8B, num_hidden_layers=2)


@pytest.mark.parametrize(
    ("workload", "num_requests", "at_once", "expected"),
    [("chat", 512, 512, 22_700), ("decode", 256, 256, 50_600), ("decode", 1024, 1024, 86_000)],
)
def test_four_stages_of_an_8b_model_have_the_bound_that_their_goals_come_from(
    workload: str, num_requests: int, at_once: int, expected: float
) -> None:
    requests = make_workload(workload, num_requests, QWEN3_8B.vocab_size)
    assert bound_tokens_per_s(QWEN3_8B, requests, at_once, FOUR_STAGES, H200) == pytest.approx(expected, rel=0.05)


def test_one_gpu_is_bound_above_what_was_ever_measured_on_it() -> None:
    requests = make_workload("decode", 256, QWEN3_8B.vocab_size)
    assert bound_tokens_per_s(QWEN3_8B, requests, 256, LayerSpan.in_turn([36]), H200) == pytest.approx(23_200, rel=0.05)


def test_a_lone_sequence_reads_the_slowest_stages_weights_for_each_token() -> None:
    requests = [Request(0.0, [1], 1000)]
    spans = LayerSpan.in_turn([1, 1])
    layer_and_head_s = (192_937_984 + 151_936 * 4096) * 2 / 1e12
    speed = Speed(bytes_per_s=1e12, flops_per_s=1e18)
    assert bound_tokens_per_s(TINY, requests, 1, spans, speed) == pytest.approx(1 / layer_and_head_s, rel=0.01)


def test_what_ends_makes_room_for_what_waits() -> None:
    requests = [Request(0.0, [1], 100 + each) for each in range(8)]
    speed = Speed(bytes_per_s=1e12, flops_per_s=1e18)
    one, two, all_at_once = (bound_tokens_per_s(TINY, requests, at_once, TWO_LAYERS, speed) for at_once in (1, 2, 8))
    assert two == pytest.approx(2 * one, rel=0.02)
    assert all_at_once == pytest.approx(8 * one, rel=0.05)


def test_a_window_bounds_what_is_read_and_arrivals_bound_the_rest() -> None:
    requests = [Request(0.0, [1] * 5000, 100)] * 64
    windowed = replace(TINY, sliding_window=10, windowed_layers=frozenset({0}))
    whole, half = (bound_tokens_per_s(each, requests, 64, TWO_LAYERS, H200) for each in (TINY, windowed))
    assert half > whole
    late = [replace(requests[0], arrival_s=64.0)]
    assert bound_tokens_per_s(TINY, requests + late, 64, TWO_LAYERS, H200) == pytest.approx(65 * 100 / 64)
