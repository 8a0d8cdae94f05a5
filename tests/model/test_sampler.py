"""What the sampler picks: greedy rows exactly, random ones with the probabilities that the settings define."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from penstock.model.draw import WIDE
from penstock.scheduler.plan import GREEDY, Sampling

from .sampler_rig import SamplerRig, edited, probabilities

NUM_DRAWS = 4000
SAMPLINGS = {
    "plain": Sampling(temperature=1.0),
    "cold": Sampling(temperature=0.5),
    "min_p": Sampling(temperature=1.3, min_p=0.2),
    "top_k": Sampling(temperature=1.0, top_k=4),
    "top_p": Sampling(temperature=1.0, top_p=0.7),
    "all": Sampling(temperature=1.5, top_k=6, top_p=0.8, min_p=0.1),
    "bias": Sampling(temperature=1.0, logit_bias=((2, -3.0), (5, 2.0))),
}


class CountingMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def draws(logits: torch.Tensor, sampling: Sampling, by: str) -> list[int]:
    """Thousands of tokens from one distribution, each with another seed or at another position."""
    rig = SamplerRig(len(logits), NUM_DRAWS)
    slots = range(NUM_DRAWS)
    if by == "seed":
        registrations = [rig.register(slot, [0], [], replace(sampling, seed=slot)) for slot in slots]
    else:
        registrations = [rig.register(slot, [0] * (slot + 1), [], sampling) for slot in slots]
    return rig.step(logits.expand(NUM_DRAWS, -1), slots, registrations)


def test_greedy_rows_take_the_most_likely_token_and_the_lowest_of_equals() -> None:
    rig = SamplerRig(5)
    logits = torch.tensor([[0.0, 3, 1, 3, 2], [7, 7, 7, 7, 7], [0, 0, 0, 0, 1]])
    assert rig.step(logits, [0, 1, 2], [rig.register(slot, [1, 2], [], GREEDY) for slot in range(3)]) == [1, 0, 4]


def test_a_greedy_step_is_one_argmax_and_nothing_else() -> None:
    rig = SamplerRig(16)
    inputs = rig.apply([0, 1], [rig.register(slot, [1], [], GREEDY) for slot in range(2)])
    step, logits = rig.sampler.prepare(inputs, rig.mirror), torch.randn(2, 16)
    with CountingMode() as mode:
        rig.sampler.sample(logits, step)
    assert mode.names == ["argmax"]


@pytest.mark.parametrize("by", ["seed", "position"])
@pytest.mark.parametrize("name", SAMPLINGS)
def test_tokens_come_with_their_probabilities(name: str, by: str) -> None:
    sampling = SAMPLINGS[name]
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)) * 1.5
    expected = probabilities(edited(logits, sampling, [0], []), sampling)
    counts = np.bincount(draws(logits, sampling, by), minlength=12)
    assert {int(token) for token in np.flatnonzero(counts)} <= set(expected)
    wanted = np.array(list(expected.values())) * NUM_DRAWS
    chi_square = ((counts[list(expected)] - wanted) ** 2 / wanted).sum()
    assert chi_square < len(expected) - 1 + 4 * np.sqrt(2 * len(expected))


def test_successive_tokens_are_independent() -> None:
    tokens = np.array(draws(torch.zeros(6), Sampling(temperature=1.0, seed=9), "position"))
    pairs = np.bincount(tokens[1:] * 6 + tokens[:-1], minlength=36)
    chi_square = ((pairs - pairs.mean()) ** 2 / pairs.mean()).sum()
    assert chi_square < 35 + 4 * np.sqrt(70)


@pytest.mark.parametrize(
    "truncation",
    [
        {"top_k": 3},
        {"top_k": 64},
        {"top_k": 65, "top_p": 0.6},
        {"top_k": WIDE + 1},
        {"top_k": WIDE + 1, "top_p": 0.5},
        {"top_p": 0.3},
        {"top_p": 0.999},
        {"min_p": 0.02, "top_p": 0.9},
        {"top_k": 5000},
    ],
    ids=str,
)
@pytest.mark.parametrize("scale", [2.0, 0.3])
def test_truncation_keeps_exactly_the_tokens_that_the_settings_name(truncation: dict[str, Any], scale: float) -> None:
    rows, vocab_size = 10, 3000
    rig = SamplerRig(vocab_size, rows)
    logits = torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(2)) * scale
    samplings = [Sampling(temperature=1.1, seed=slot, **truncation) for slot in range(rows)]
    tokens = rig.step(logits, range(rows), [rig.register(slot, [0], [], s) for slot, s in enumerate(samplings)])
    plain = SamplerRig(vocab_size, rows)
    for slot, (token, s) in enumerate(zip(tokens, samplings, strict=True)):
        kept = list(probabilities(logits[slot].double().numpy(), s))
        only_kept = torch.full((vocab_size,), -torch.inf).index_copy_(0, torch.tensor(kept), logits[slot][kept])
        untruncated = plain.register(slot, [0], [], Sampling(temperature=1.1, seed=slot))
        assert [token] == plain.step(only_kept[None], [slot], [untruncated]), f"row {slot} keeps {len(kept)} tokens"


def test_a_temperature_next_to_zero_is_greedy() -> None:
    rig = SamplerRig(50)
    logits = torch.randn(1, 50)
    assert rig.step(logits, [0], [rig.register(0, [1], [], Sampling(temperature=1e-6))]) == [int(logits.argmax())]


def test_greedy_and_random_rows_share_a_step() -> None:
    rig, logits = SamplerRig(50), torch.randn(3, 50)
    samplings = [GREEDY, Sampling(temperature=2.0, seed=4), GREEDY]
    tokens = rig.step(logits, [0, 1, 2], [rig.register(slot, [1], [], s) for slot, s in enumerate(samplings)])
    assert [tokens[0], tokens[2]] == [int(logits[0].argmax()), int(logits[2].argmax())]
