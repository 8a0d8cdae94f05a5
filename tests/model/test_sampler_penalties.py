"""Logit bias, min_tokens and penalties change the logits as written naively, step after step, slot after slot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from penstock.scheduler.plan import GREEDY, Sampling

from .sampler_rig import SamplerRig, edited

V = 24
SETTINGS = [
    Sampling(repetition_penalty=1.7),
    Sampling(presence_penalty=0.8, frequency_penalty=0.4),
    GREEDY,
    Sampling(repetition_penalty=0.6, frequency_penalty=-0.5, logit_bias=((1, 4.0), (7, -100.0))),
    Sampling(min_tokens=3, stop_token_ids=(4, 5, 99)),
]
PROMPTS = [[1, 1, 2], [3], [4, 5], [6, 7, 7, 7], [8, 9]]


def logits_for(step: int, rows: int = len(SETTINGS)) -> torch.Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(step)) * 2


def check_step(rig: SamplerRig, raw: torch.Tensor, outputs: list[list[int]], tokens: list[int]) -> None:
    for slot, (s, prompt, output) in enumerate(zip(SETTINGS, PROMPTS, outputs, strict=True)):
        s = replace(s, stop_token_ids=tuple(token for token in s.stop_token_ids if token < V))
        expected = edited(raw[slot], s, prompt, output)
        np.testing.assert_allclose(rig.logits[slot].numpy(), expected, rtol=1e-5, atol=1e-5)
        assert tokens[slot] == expected.argmax()
        output.append(tokens[slot])


def test_every_step_penalises_what_was_prompted_and_generated_so_far() -> None:
    rig = SamplerRig(V)
    outputs: list[list[int]] = [[] for _ in SETTINGS]
    registrations = [rig.register(slot, PROMPTS[slot], [], s) for slot, s in enumerate(SETTINGS)]
    for step in range(8):
        raw = logits_for(step)
        tokens = rig.step(raw, range(len(SETTINGS)), registrations if step == 0 else [])
        check_step(rig, raw, outputs, tokens)


def test_a_preempted_request_resumes_with_its_counts() -> None:
    rig, outputs = SamplerRig(V), [[3, 3, 1], [5, 3, 3], [1], [7, 2, 2, 2], [6, 6]]
    registrations = [rig.register(slot, PROMPTS[slot], outputs[slot], s) for slot, s in enumerate(SETTINGS)]
    raw = logits_for(0)
    check_step(rig, raw, outputs, rig.step(raw, range(len(SETTINGS)), registrations))


def test_a_slots_next_owner_starts_from_its_own_tokens() -> None:
    rig, heavy = SamplerRig(V), Sampling(repetition_penalty=2.0, frequency_penalty=1.0)
    rig.step(logits_for(0, 2), [0, 1], [rig.register(slot, [1, 2, 3], [4, 5], heavy) for slot in (0, 1)])
    owners = [rig.register(0, [9], [], heavy), rig.register(1, [1], [], GREEDY)]
    raw = logits_for(1, 2)
    rig.step(raw, [0, 1], owners, released=[0, 1])
    np.testing.assert_allclose(rig.logits[0].numpy(), edited(raw[0], heavy, [9], []), rtol=1e-5, atol=1e-5)
    assert torch.equal(rig.logits[1], raw[1])


def test_counts_grow_with_the_slots_that_ask_and_keep_what_they_hold() -> None:
    rig, s = SamplerRig(V, num_slots=40), Sampling(presence_penalty=1.0)
    rig.step(logits_for(0, 1), [30], [rig.register(30, [1], [7, 8], s)])
    rig.step(logits_for(1, 20), range(20), [rig.register(slot, [1], [2], s) for slot in range(20)])
    raw = logits_for(2, 1)
    rig.step(raw, [30])
    first = int(edited(logits_for(0, 1)[0], s, [1], [7, 8]).argmax())
    np.testing.assert_allclose(rig.logits[0].numpy(), edited(raw[0], s, [1], [7, 8, first]), rtol=1e-5, atol=1e-5)


def test_min_tokens_ends_with_the_token_that_fulfils_it() -> None:
    rig, s = SamplerRig(4), Sampling(min_tokens=2, stop_token_ids=(3,))
    stop = torch.tensor([[0.0, 1, 2, 9]])
    assert rig.step(stop, [0], [rig.register(0, [1, 1, 1], [], s)]) == [2]
    assert rig.step(stop, [0]) == [2]
    assert rig.step(stop, [0]) == [3]


@pytest.mark.parametrize("beyond", [Sampling(repetition_penalty=1e-60), Sampling(temperature=1e60)])
def test_settings_beyond_float32_allow_no_forbidden_token(beyond: Sampling) -> None:
    sampling = replace(beyond, min_tokens=1, stop_token_ids=(7,))
    rig = SamplerRig(V)
    assert rig.step(logits_for(0, 1), [0], [rig.register(0, [7], [], sampling)]) != [7]
