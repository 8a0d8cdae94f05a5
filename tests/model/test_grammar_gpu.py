"""On a GPU: the same masks and tokens as on a CPU; no operation waits for the device but the wait for a row's token."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import penstock.model.demo
from penstock.model.grammar_compiler import GrammarCompiler
from penstock.model.sampler import Sampler
from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import GREEDY, Registration, Sampling, StepPlan, ints

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

DEMO = str(Path(penstock.model.demo.__file__).parent)
V, END, NUM_STEPS = 264, 257, 12
SETTINGS = [
    GREEDY,
    Sampling(grammar="regex\n[a-f]{5}"),
    Sampling(grammar='json\n{"type":"string","maxLength":6}', temperature=1.0, seed=3),
    Sampling(grammar="regex\nx{0,3}", min_tokens=8, stop_token_ids=(END,), presence_penalty=0.5),
]


def run(device: str) -> list[list[int]]:
    """The tokens of each step, with logits made on the CPU."""
    slots, generator = list(range(len(SETTINGS))), torch.Generator().manual_seed(0)
    mirror, sampler = Mirror(8, 1, 64), Sampler(8, V, device, GrammarCompiler(DEMO, V, [END]))
    sampler.grammars.warm(torch.zeros(4, V, device=device))
    tokens = []
    for step in range(NUM_STEPS):
        new = [Registration(s, 1, 0, 1, ints([5]), SETTINGS[s]) for s in slots] if step == 0 else []
        blocks = ints([r.slot for r in new])
        plan = StepPlan(
            step, ints(slots), ints([1] * len(slots)), registrations=new, block_slots=blocks, block_ids=blocks
        )
        logits = torch.randn(len(slots), V, generator=generator).to(device)
        work = sampler.prepare(mirror.apply(plan), mirror)
        torch.cuda.set_sync_debug_mode("error")
        sampled = sampler.sample(logits, work).to_host()
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        tokens.append(sampled.token_ids.tolist())
    return tokens


def test_a_gpu_masks_as_a_cpu_does() -> None:
    on_gpu = run("cuda")
    assert on_gpu == run("cpu")
    assert [row[1] for row in on_gpu][5:] == [END] * (NUM_STEPS - 5)
