"""The stage's arithmetic on a GPU: bfloat16 logits against transformers' in float32, at the families' real widths."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.configs.model_config import ModelConfig
from penstock.model.decoder import StageModule
from penstock.model.exchange import Exchange
from penstock.model.gpu import attention
from penstock.model.gpu.eager import EagerLauncher
from penstock.model.gpu.graphs import GraphLauncher
from penstock.model.kv_cache import KVCache
from penstock.model.limits import StepLimits
from penstock.model.tensor_parallel import ThreadTensorParallel, kv_heads_per_rank
from penstock.model.work import StepWork
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Registration, StepPlan, ints

from .wide import SHAPES, VOCAB_SIZE, our_module, wide_model

DEVICE = torch.device("cuda")
BLOCK_SIZE, NUM_BLOCKS, NUM_SEQS = 16, 64, 3
SCHEDULE = [{0: 60, 1: 17}, {0: 1, 1: 30, 2: 5}, {0: 1, 1: 1, 2: 1}, {0: 1, 1: 1, 2: 1}]  # chunks, mixed, decodes
TOLERANCE = 0.02  # of the logits' norm: bfloat16 keeps 8 bits, two layers add up the roundings of a dozen products


def run(launcher: EagerLauncher, module: StageModule, sequences: list[list[int]]) -> list[Tensor]:
    """Each sequence's logits under the schedule."""
    mirror = Mirror(NUM_SEQS, 8, BLOCK_SIZE)
    free = iter(np.random.default_rng(1).permutation(NUM_BLOCKS).tolist())
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for step, counts in enumerate(SCHEDULE):
        new = [Registration(s, 0, 0, len(sequences[s]), ints(sequences[s])) for s in counts if mirror.generation[s] < 0]
        wanted = {
            s: -(-(int(mirror.num_computed[s]) + n) // BLOCK_SIZE) - int(mirror.num_blocks[s])
            for s, n in counts.items()
        }
        grants = [(s, next(free)) for s, n in wanted.items() for _ in range(n)]
        plan = StepPlan(
            step,
            ints(list(counts)),
            ints(list(counts.values())),
            registrations=new,
            block_slots=ints([s for s, _ in grants]),
            block_ids=ints([b for _, b in grants]),
        )
        inputs = mirror.apply(plan)
        work = StepWork(inputs)
        with torch.inference_mode():
            launcher.run(work)
            assert work.hidden is not None
            logits = module.logits(work.hidden.clone())
        for s, part in zip(counts, torch.split(logits, list(counts.values())), strict=True):
            parts[s].append(part)
    return [torch.cat(each) for each in parts]


def random_sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = [sum(counts.get(s, 0) for counts in SCHEDULE) for s in range(NUM_SEQS)]
    return [rng.integers(3, VOCAB_SIZE, n).tolist() for n in lengths]


def expected_logits(reference: Any, sequences: list[list[int]]) -> list[Tensor]:
    with torch.inference_mode():
        return [reference(torch.tensor([ids], device="cuda")).logits[0].float() for ids in sequences]


def bind_cache(module: StageModule, config: ModelConfig) -> None:
    heads = kv_heads_per_rank(config.num_key_value_heads, module.tp.size)
    module.bind_cache(KVCache(2, NUM_BLOCKS + 1, BLOCK_SIZE, heads, config.head_dim, torch.bfloat16, "cuda"))


def assert_near(name: str, logits: list[Tensor], expected: list[Tensor]) -> None:
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(logits, expected, strict=True)]
    print(f"\n{name}: relative error of the logits {max(errors):.4f}")
    assert max(errors) < TOLERANCE


def limits_of(config: ModelConfig) -> StepLimits:
    return StepLimits(NUM_SEQS, 128, 128, BLOCK_SIZE, config.hidden_size, torch.bfloat16)


def hold_against_transformers(folder: Path, name: str) -> None:
    """Launched kernel by kernel and replayed from graphs, which give the same bits."""
    reference, config, tensors = wide_model(folder, name)
    module, sequences = our_module(config, tensors), random_sequences()
    bind_cache(module, config)
    expected = expected_logits(reference, sequences)
    del reference, tensors
    limits = limits_of(config)
    exchange = Exchange.of(limits, DEVICE, first=True, last=True)
    eager = run(EagerLauncher(module, DEVICE, limits, NUM_BLOCKS, exchange), module, sequences)
    graphed = run(GraphLauncher(module, DEVICE, limits, NUM_BLOCKS, exchange), module, sequences)
    assert_near(name, eager, expected)
    for a, b in zip(eager, graphed, strict=True):
        assert torch.equal(a, b), "a graph gives other bits"
    torch.cuda.empty_cache()


@pytest.mark.parametrize("name", list(SHAPES))
def test_logits_are_those_of_transformers_with_and_without_graphs(tmp_path: Path, name: str) -> None:
    hold_against_transformers(tmp_path, name)


def test_logits_without_flash_attention_are_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "find_flash_attention", lambda: None)
    hold_against_transformers(tmp_path, "qwen3")


@pytest.mark.parametrize("name", ["qwen3", "qwen2"])  # without biases, and with them
def test_logits_of_two_ranks_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    reference, config, tensors = wide_model(tmp_path, name)
    sequences, limits = random_sequences(), limits_of(config)
    expected = expected_logits(reference, sequences)
    del reference
    ranks = ThreadTensorParallel.group(2)
    modules = [our_module(config, tensors, tp) for tp in ranks]

    def serve(module: StageModule) -> list[Tensor]:
        try:
            bind_cache(module, config)
            exchange = Exchange.of(limits, DEVICE, first=True, last=True)
            return run(EagerLauncher(module, DEVICE, limits, NUM_BLOCKS, exchange), module, sequences)
        except BaseException:
            ranks[module.tp.rank].abort()
            raise

    with ThreadPoolExecutor(2) as pool:
        logits = list(pool.map(serve, modules))
    assert_near(f"{name}, two ranks", logits[0], expected)
    assert all(torch.equal(a, b) for a, b in zip(*logits, strict=True))
    torch.cuda.empty_cache()
