"""The tokens per second of a pipeline whose stages are never idle: what a run's figure is held against.

Time goes in rounds, in which each running sequence gets a token. In a round a stage reads its weights once for each
cohort (as many as stages, fewer where fewer sequences run), and its share of the keys and values of all sequences; its
arithmetic is 2 operations a weight for each token, and hides behind the reading of the weights or the other way round:

    round = max(cohorts * weights / bandwidth, 2 * weights * tokens / operations per second) + cache read / bandwidth

A sequence's first round takes in its whole prompt. When it ends, the next one that waits has its place. The head counts
like a layer's weights, but its arithmetic for sampled tokens only; the embedding counts nothing. The stage with the
largest sum over all rounds decides, and no run ends before its last request comes.

Neglected, all of which makes a real run slower: attention's own arithmetic, writing the cache, hidden states and norms,
what kernels fall short of the measured bandwidth and rate, launching, sampling, hops between stages, the pipeline's
filling and draining, and the reading of a prompt's own cache by its later chunks.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...configs.model_config import ModelConfig
from ...model.layer_span import LayerSpan
from ...model.partition import step_costs
from ...model.stage import stage_dtype
from ..engine import EngineHandle
from .workloads import Request

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Speed:
    """What a stage's device reaches, its ranks together."""

    bytes_per_s: float
    flops_per_s: float


def bound_tokens_per_s(
    config: ModelConfig,
    requests: Sequence[Request],
    at_once: int,
    spans: Sequence[LayerSpan],
    speed: Speed,
    bytes_per_weight: int = 2,
) -> float:
    """Output tokens per second of stages with these layers, the head on the last."""
    prompts = np.array([len(each.prompt_token_ids) for each in requests])
    outputs = np.array([each.max_tokens for each in requests])
    rows, prompt_tokens = _rounds(prompts, outputs, at_once)
    tokens = rows + prompt_tokens
    cohorts = np.minimum(rows, len(spans))
    costs = step_costs(config)
    stages_s = []
    for span in spans:
        own_head = costs.head if span is spans[-1] else 0
        weights = costs.of(span)
        reading_s = cohorts * (weights + own_head) * bytes_per_weight / speed.bytes_per_s
        arithmetic_s = 2 * (weights * tokens + own_head * rows) / speed.flops_per_s
        cached = sum(_cached_tokens_read(prompts, outputs, config.window_of(each)) for each in span.attentions)
        cache_bytes = cached * 2 * config.num_key_value_heads * config.head_dim * bytes_per_weight
        stages_s.append(float(np.maximum(reading_s, arithmetic_s).sum()) + cache_bytes / speed.bytes_per_s)
    return float(outputs.sum() / max(*stages_s, max(each.arrival_s for each in requests)))


def _rounds(prompts: Counts, outputs: Counts, at_once: int) -> tuple[Counts, Counts]:
    """By round: the sequences that get a token, and the prompt tokens taken in beyond one for each of those."""
    ends: list[int] = []
    starts = []
    for num_tokens in outputs.tolist():
        starts.append(heapq.heappop(ends) if len(ends) == at_once else 0)
        heapq.heappush(ends, starts[-1] + num_tokens)
    begun, num_rounds = np.array(starts), max(ends)
    changes, prompt_tokens = np.zeros(num_rounds + 1, np.int64), np.zeros(num_rounds, np.int64)
    np.add.at(changes, begun, 1)
    np.add.at(changes, begun + outputs, -1)
    np.add.at(prompt_tokens, begun, prompts - 1)
    return np.cumsum(changes)[:-1], prompt_tokens


def _cached_tokens_read(prompts: Counts, outputs: Counts, window: int | None) -> int:
    """In one layer, over all rounds but each sequence's first: what its token attends to, the window's share of it."""
    if window is None:
        return int(((outputs - 1) * prompts + outputs * (outputs - 1) // 2).sum())
    lengths = zip(prompts.tolist(), outputs.tolist(), strict=True)
    return sum(int(np.minimum(np.arange(prompt + 1, prompt + output), window).sum()) for prompt, output in lengths)


def bound_of(engine: EngineHandle, requests: Sequence[Request], at_once: int) -> float | None:
    """The bound of an engine that runs, so many requests being open at a time; None where its stages measured nothing.

    All stages count with the bandwidth and the rate of the slowest rank.
    """
    config, model_config, ranks = engine.config, engine.model_config, engine.stages
    bandwidths = [rank.bytes_per_s for rank in ranks if rank.bytes_per_s]
    rates = [rank.flops_per_s for rank in ranks if rank.flops_per_s]
    if len(bandwidths) < len(ranks) or len(rates) < len(ranks):
        return None
    width = config.tensor_parallel_size
    return bound_tokens_per_s(
        model_config,
        requests,
        min(at_once, config.max_num_seqs),
        [rank.span for rank in ranks if rank.tp_rank == 0],
        Speed(width * min(bandwidths), width * min(rates)),
        stage_dtype(config, model_config).itemsize,
    )
