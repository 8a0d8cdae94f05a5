"""A burst of long prompts that all ask for log-probabilities, at a real vocabulary's width: the stage with the head has
memory for them although the cache takes what `gpu_memory_utilization` allows.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penstock.actors.llm import LLM
from penstock.actors.outputs import PositionLogprobs, RequestOutput
from penstock.configs.sampling import SamplingParams

from .run_on_gpu import COMMON

pytestmark = pytest.mark.usefixtures("cluster")
DEVICE = "cuda"
SHAPE = COMMON | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 4, "num_attention_heads": 16}
NUM_PROMPTS, SCORED_EVERY = 512, 16
MAX_TOKENS, NUM_LOGPROBS, NUM_PROMPT_LOGPROBS = 4, 20, 5
UTILIZATION = 0.9
BF16_BYTES = 2
LEAST_SHARE = 0.85  # of the memory beside the weights: a step's peak, graphs and a spare take the rest


def burst_prompts(shape: dict[str, Any], count: int, mean_length: int) -> list[list[int]]:
    """Lengths within 7 % of the mean, nothing shared."""
    rng, spread = np.random.default_rng(0), mean_length // 15
    lengths = rng.integers(mean_length - spread, mean_length + spread, count)
    return [rng.integers(3, shape["vocab_size"], length).tolist() for length in lengths]


def burst_params(count: int) -> list[SamplingParams]:
    """Alternatives for every token, for a few prompts too; every other request draws from a penalised nucleus."""
    common = {"max_tokens": MAX_TOKENS, "logprobs": NUM_LOGPROBS, "ignore_eos": True, "detokenize": False}
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_p": 0.9, "seed": 3, "repetition_penalty": 1.1, "presence_penalty": 0.2},
    ]
    scored = [{"prompt_logprobs": NUM_PROMPT_LOGPROBS} if i % SCORED_EVERY == 0 else {} for i in range(count)]
    return [SamplingParams(**common, **kinds[i // 2 % 2], **scored[i]) for i in range(count)]


def burst(folder: Path, prompts: list[list[int]], **settings: Any) -> tuple[list[RequestOutput], int]:
    """All prompts at once; the answers, and the tokens that the cache holds."""
    common = {"load_format": "dummy", "skip_tokenizer_init": True, "max_num_seqs": len(prompts)}
    with LLM(str(folder), **common, **settings) as llm:
        outputs = llm.generate(prompts, burst_params(len(prompts)))
        assert llm.stats()["failure"] is None
        return outputs, llm.limits.cache_tokens


def assert_answered(outputs: Sequence[RequestOutput]) -> None:
    for i, output in enumerate(outputs):
        assert output.error is None
        answer = output.outputs[0]
        assert (len(answer.token_ids), answer.finish_reason) == (MAX_TOKENS, "length")
        assert answer.logprobs is not None
        assert_scored(answer.logprobs, answer.token_ids, NUM_LOGPROBS)
        if i % SCORED_EVERY == 0:
            assert output.prompt_logprobs is not None
            assert_scored(output.prompt_logprobs[1:], output.prompt_token_ids[1:], NUM_PROMPT_LOGPROBS)


def assert_scored(places: Sequence[PositionLogprobs | None], token_ids: Sequence[int], num_top: int) -> None:
    assert len(places) == len(token_ids)
    for place, token in zip(places, token_ids, strict=True):
        assert place is not None
        assert token in place
        assert num_top <= len(place) <= num_top + 1
        assert all(math.isfinite(each.logprob) and each.logprob <= 0 for each in place.values())


def most_cache_tokens(shape: dict[str, Any], partition: Sequence[int], total_bytes: int) -> int:
    """Tokens that the memory beside the weights holds on the tightest stage, where nothing else takes any."""
    hidden, heads, kv_heads = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    rows = shape["head_dim"] * (2 * heads + 2 * kv_heads) + 3 * shape["intermediate_size"]
    last = len(partition) - 1
    found = []
    for stage, layers in enumerate(partition):
        weights = layers * rows * hidden + ((stage == 0) + (stage == last)) * shape["vocab_size"] * hidden
        beside = UTILIZATION * total_bytes - BF16_BYTES * weights
        found.append(int(beside / (BF16_BYTES * layers * 2 * kv_heads * shape["head_dim"])))
    return min(found)


def test_512_long_prompts_with_logprobs_fit_beside_a_cache_of_all_the_memory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    partition = [1, 3] if torch.cuda.device_count() > 1 else [4]  # the stage with the head is the tightest
    gc.collect()
    torch.cuda.empty_cache()  # what earlier tests of this process have left
    outputs, cache_tokens = burst(
        tmp_path,
        burst_prompts(SHAPE, NUM_PROMPTS, 1500),
        device=DEVICE,
        pipeline_parallel_size=len(partition),
        pipeline_layer_partition=partition,
        max_model_len=2048,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=UTILIZATION,
    )
    assert_answered(outputs)
    most = most_cache_tokens(SHAPE, partition, torch.cuda.get_device_properties(0).total_memory)
    print(f"\n{partition}: the cache holds {cache_tokens} tokens, {cache_tokens / most:.1%} of what the memory would")
    assert LEAST_SHARE * most < cache_tokens <= most
