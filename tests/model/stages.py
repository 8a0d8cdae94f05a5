"""Stages without actors: modules fed with plans, one after the other, ranks as threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from penstock.configs.model_config import ModelConfig
from penstock.model.batch import Batch
from penstock.model.decoder import StageModule, build_stage_module
from penstock.model.kv_cache import KVCache
from penstock.model.layer_span import LayerSpan
from penstock.model.loader import dummy_weights, load_weights
from penstock.model.partition import partition_layers
from penstock.model.tensor_parallel import (
    NoTensorParallel,
    TensorParallel,
    ThreadTensorParallel,
    kv_heads_per_rank,
)
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Ints, Registration, StepPlan, ints

BLOCK_SIZE = 4
NUM_BLOCKS = 64


def build_module(
    config: ModelConfig, span: LayerSpan, tp: TensorParallel, source: Path | int, dtype: torch.dtype = torch.float32
) -> StageModule:
    """A loaded module with a cache; `source` is a model folder, or the seed of random weights."""
    first, last = span.start == 0, span.ends_with(config.num_hidden_layers)
    module = build_stage_module(config, span, tp, dtype=dtype, first=first, last=last)
    if isinstance(source, int):
        dummy_weights(module, config, source)
    else:
        load_weights(module, source, config, span, tp.rank, tp.size)
    kv_heads = kv_heads_per_rank(config.num_key_value_heads, tp.size)
    module.bind_cache(KVCache(len(span.attentions), NUM_BLOCKS, BLOCK_SIZE, kv_heads, config.head_dim, dtype))
    return module


@dataclass
class Pipeline:
    """All ranks of all stages in one process."""

    config: ModelConfig
    source: Path | int
    num_stages: int = 1
    tp_size: int = 1
    ranks: list[list[StageModule]] = field(init=False)  # [tp rank][stage]

    def __post_init__(self) -> None:
        partition = partition_layers(self.config, self.num_stages, None)
        tps: list[TensorParallel] = [NoTensorParallel()]
        if self.tp_size > 1:
            tps = list(ThreadTensorParallel.group(self.tp_size))
        self.ranks = [[build_module(self.config, span, tp, self.source) for span in partition] for tp in tps]

    def logits(self, batch: Callable[[], Batch]) -> Tensor:
        """The step's logits [T, V], which all ranks must agree on."""
        with ThreadPoolExecutor(self.tp_size) as pool:
            answers = list(pool.map(lambda stages: run_stages(stages, batch()), self.ranks))
        for answer in answers[1:]:
            assert torch.equal(answer, answers[0])
        return answers[0]


def run_stages(stages: list[StageModule], batch: Batch) -> Tensor:
    """One rank's way through the stages."""
    torch.set_num_threads(1)
    hidden = stages[0].embed(batch.token_ids)
    for stage in stages:
        hidden = stage(hidden, batch)
    return stages[-1].logits(hidden)


@dataclass
class Sequences:
    """Sequences that are computed in chunks; blocks are scattered over the cache. Steps must be run as they come."""

    token_ids: list[Ints]  # of each sequence, all known

    def __post_init__(self) -> None:
        self._mirror = Mirror(len(self.token_ids), NUM_BLOCKS, BLOCK_SIZE)
        self._blocks = iter(np.random.default_rng(1).permutation(NUM_BLOCKS))
        self._next_step = 0

    def step(self, counts: dict[int, int]) -> Callable[[], Batch]:
        """Makes the next step's batch, with so many tokens of each of these sequences."""
        mirror = self._mirror
        known = [Registration(s, 0, 0, len(self.token_ids[s]), self.token_ids[s]) for s in counts]
        wanted = {slot: -(-(mirror.num_computed[slot] + count) // BLOCK_SIZE) for slot, count in counts.items()}
        grants = [(s, next(self._blocks)) for s in counts for _ in range(wanted[s] - mirror.num_blocks[s])]
        plan = StepPlan(
            step=self._next_step,
            slots=ints(list(counts)),
            num_tokens=ints(list(counts.values())),
            registrations=[r for r in known if mirror.generation[r.slot] < 0],
            block_slots=ints([slot for slot, _ in grants]),
            block_ids=ints([block for _, block in grants]),
        )
        self._next_step += 1
        inputs = mirror.apply(plan)
        return lambda: Batch.from_step(inputs)


def logits_by_sequence(pipeline: Pipeline, sequences: Sequences, schedule: list[dict[int, int]]) -> list[Tensor]:
    """Runs the steps and gives each sequence's logits in the order of its tokens."""
    gathered: list[list[Tensor]] = [[] for _ in sequences.token_ids]
    for counts in schedule:
        parts = torch.split(pipeline.logits(sequences.step(counts)), list(counts.values()))
        for slot, part in zip(counts, parts, strict=True):
            gathered[slot].append(part)
    return [torch.cat(parts) for parts in gathered]
