"""The stage's arithmetic on a GPU: bfloat16 logits against transformers' in float32, at the families' real widths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from penstock.model.decoder import StageModule
from penstock.model.exchange import Exchange
from penstock.model.gpu.eager import EagerLauncher
from penstock.model.gpu.graphs import GraphLauncher
from penstock.model.kv_cache import KVCache
from penstock.model.limits import StepLimits
from penstock.model.work import StepWork
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Registration, StepPlan, ints

from .wide import SHAPES, VOCAB_SIZE, our_module, wide_model

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


@pytest.mark.parametrize("name", list(SHAPES))
def test_logits_are_those_of_transformers_with_and_without_graphs(tmp_path: Path, name: str) -> None:
    reference, config, tensors = wide_model(tmp_path, name)
    module = our_module(config, tensors)
    cache = KVCache(2, NUM_BLOCKS + 1, BLOCK_SIZE, config.num_key_value_heads, config.head_dim, torch.bfloat16, "cuda")
    module.bind_cache(cache)
    rng = np.random.default_rng(0)
    lengths = [sum(counts.get(s, 0) for counts in SCHEDULE) for s in range(NUM_SEQS)]
    sequences = [rng.integers(3, VOCAB_SIZE, n).tolist() for n in lengths]
    with torch.inference_mode():
        expected = [reference(torch.tensor([ids], device="cuda")).logits[0].float() for ids in sequences]
    del reference, tensors
    limits = StepLimits(NUM_SEQS, 128, 128, BLOCK_SIZE, config.hidden_size, torch.bfloat16)
    device = torch.device("cuda")
    exchange = Exchange.of(limits, device, first=True, last=True)
    eager = run(EagerLauncher(module, device, limits, NUM_BLOCKS, exchange), module, sequences)
    graphed = run(GraphLauncher(module, device, limits, NUM_BLOCKS, exchange), module, sequences)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(eager, expected, strict=True)]
    print(f"\n{name}: relative error of the logits {max(errors):.4f}")
    assert max(errors) < TOLERANCE
    for a, b in zip(eager, graphed, strict=True):
        assert torch.equal(a, b), "a graph gives other bits"
    torch.cuda.empty_cache()
