"""Drives a sampler through plans as the last stage does, and says naively, in float64, what it should do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from penstock.model.grammar_compiler import GrammarCompiler
from penstock.model.sampler import Sampled, Sampler
from penstock.scheduler.mirror import Mirror, StepInput
from penstock.scheduler.plan import Registration, Sampling, StepPlan, ints


class SamplerRig:
    """A mirror and a sampler; every call of `step` is one plan. Logits of the newest step stay in `logits`."""

    def __init__(self, vocab_size: int, num_slots: int = 8, compiler: GrammarCompiler | None = None) -> None:
        self.mirror = Mirror(num_slots, max_blocks_per_seq=1, block_size=1 << 20)
        self.sampler = Sampler(num_slots, vocab_size, "cpu", compiler)
        self.logits = torch.empty(0)
        self._generation = [0] * num_slots
        self._num_steps = 0

    def register(self, slot: int, prompt: Sequence[int], output: Sequence[int], sampling: Sampling) -> Registration:
        """A registration of prompt + output of which all but the last token are in the cache."""
        self._generation[slot] += 1
        tokens = ints([*prompt, *output])
        return Registration(slot, self._generation[slot], len(tokens) - 1, len(prompt), tokens, sampling)

    def step(
        self,
        logits: Tensor,
        slots: Sequence[int],
        registrations: Sequence[Registration] = (),
        released: Sequence[int] = (),
    ) -> list[int]:
        """Samples one token for each slot."""
        return self.sample(logits, self.apply(slots, registrations, released)).token_ids.tolist()

    def apply(
        self, slots: Sequence[int], registrations: Sequence[Registration] = (), released: Sequence[int] = ()
    ) -> StepInput:
        """The next plan: one token for each slot."""
        plan = StepPlan(
            self._num_steps,
            ints(slots),
            ints([1] * len(slots)),
            released=ints(released),
            registrations=list(registrations),
            block_slots=ints([r.slot for r in registrations]),
            block_ids=ints([r.slot for r in registrations]),
        )
        self._num_steps += 1
        return self.mirror.apply(plan)

    def sample(self, logits: Tensor, inputs: StepInput) -> Sampled:
        """Prepares and samples; works on a copy of the logits."""
        self.logits = logits.clone()
        return self.sampler.sample(self.logits, self.sampler.prepare(inputs, self.mirror))


def edited(logits: Tensor, s: Sampling, prompt: Sequence[int], output: Sequence[int]) -> NDArray[np.float64]:
    """One row of logits [V] after bias, min_tokens and penalties, token by token."""
    x = logits.double().numpy().copy()
    for token, bias in s.logit_bias:
        x[token] += bias
    if len(output) < s.min_tokens:
        x[list(s.stop_token_ids)] = -np.inf
    for token in {*prompt, *output}:
        x[token] = x[token] / s.repetition_penalty if x[token] > 0 else x[token] * s.repetition_penalty
    for token in set(output):
        x[token] -= s.frequency_penalty * list(output).count(token) + s.presence_penalty
    return x


def probabilities(x: NDArray[np.float64], s: Sampling) -> Mapping[int, float]:
    """The tokens that may be drawn from edited logits [V], with their probabilities."""
    weights = {token: float(w) for token, w in enumerate(np.exp((x - x.max()) / s.temperature))}
    weights = {token: w for token, w in weights.items() if w >= s.min_p}
    order = sorted(weights, key=lambda token: -weights[token])[: s.top_k or None]
    total, before, kept = sum(weights[token] for token in order), 0.0, {}
    for token in order:
        if before < s.top_p * total or s.top_p == 1:
            kept[token] = weights[token]
        before += weights[token]
    return {token: w / sum(kept.values()) for token, w in kept.items()}
