"""A request draws the same tokens alone, among others, and after a preemption."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from penstock.scheduler.plan import GREEDY, Sampling

from .sampler_rig import SamplerRig

V, STEPS = 5003, 12
PROMPT = [17, 3, 3, 99]
REQUESTS = {
    "plain": Sampling(temperature=1.0, seed=1),
    "narrow": Sampling(temperature=0.7, seed=2, top_k=20, top_p=0.95),
    "wide": Sampling(temperature=1.2, seed=3, top_k=500, min_p=0.01),
    "nucleus": Sampling(temperature=1.0, seed=-4, top_p=0.9),
    "penalised": Sampling(temperature=1.0, seed=5, repetition_penalty=1.3, presence_penalty=0.5, top_p=0.99),
    "held": Sampling(temperature=2.0, seed=6, min_tokens=6, stop_token_ids=(1, 2), logit_bias=((1, 9.0),)),
}


def logits_after(tokens: Sequence[int]) -> torch.Tensor:
    """A model: logits that depend on all tokens so far."""
    return torch.randn(V, generator=torch.Generator().manual_seed(hash(tuple(tokens)) % (1 << 31))) * 2.5


def generate(rig: SamplerRig, slot: int, sampling: Sampling, others: Sequence[Sampling] = ()) -> list[int]:
    """Generates in the slot, the others beside it in the slots after, and returns the request's output."""
    return continue_from(rig, slot, sampling, [], others)


def continue_from(
    rig: SamplerRig, slot: int, sampling: Sampling, output: Sequence[int], others: Sequence[Sampling] = ()
) -> list[int]:
    settings = [*others, sampling]
    slots = [slot + 1 + at for at in range(len(others))] + [slot]
    known: list[list[int]] = [[] for _ in others] + [list(output)]
    registrations = [rig.register(*each) for each in zip(slots, [PROMPT] * len(slots), known, settings, strict=True)]
    while len(known[-1]) < STEPS:
        logits = torch.stack([logits_after([*PROMPT, *tokens]) for tokens in known])
        for tokens, token in zip(known, rig.step(logits, slots, registrations), strict=True):
            tokens.append(token)
        registrations = []
    return known[-1]


@pytest.mark.parametrize("name", REQUESTS)
def test_others_in_the_batch_change_nothing(name: str) -> None:
    alone = generate(SamplerRig(V), 0, REQUESTS[name])
    assert generate(SamplerRig(V), 1, REQUESTS[name], [*REQUESTS.values()]) == alone
    assert generate(SamplerRig(V), 2, REQUESTS[name], [GREEDY, REQUESTS[name]]) == alone


@pytest.mark.parametrize("name", REQUESTS)
def test_a_preemption_changes_nothing(name: str) -> None:
    rig, sampling = SamplerRig(V), REQUESTS[name]
    whole = generate(rig, 0, sampling)
    for done in (1, 5):
        assert continue_from(SamplerRig(V), 3, sampling, whole[:done], [REQUESTS["penalised"]]) == whole


def test_another_seed_gives_other_tokens() -> None:
    first, second = (generate(SamplerRig(V), 0, Sampling(temperature=1.0, seed=seed)) for seed in (1, 2))
    assert first != second


def test_the_number_of_threads_changes_nothing() -> None:
    before = torch.get_num_threads()
    outputs = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        outputs.append([generate(SamplerRig(V), 0, sampling) for sampling in REQUESTS.values()])
    torch.set_num_threads(before)
    assert outputs[0] == outputs[1]
