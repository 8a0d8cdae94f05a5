"""The sampling settings of every slot as host columns, so that a step's tensors are gathered and not looped over."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..scheduler.mirror import Mirror
from ..scheduler.plan import Floats, Ints, Sampling
from .draw import draw_kind
from .penalties import LARGEST, has_penalties

RANDOM, EDITS, PENALTIES, LOGPROBS, GRAMMAR = 1, 2, 4, 8, 16  # what a slot asks for, beyond the most likely token

_MIN_TEMPERATURE = 1e-5  # below it sampling is greedy, as in vLLM
_SEED_MASK = (1 << 64) - 1


@dataclass(slots=True, frozen=True)
class LogitEdits:
    """Single logits that a slot changes."""

    bias_ids: NDArray[np.int64]  # [B]
    bias: Floats  # [B]
    stop_ids: NDArray[np.int64]  # [F] not to be sampled before min_tokens are generated
    min_tokens: int


class SamplingTable:
    """Settings by slot; a slot is read again when the mirror's generation says that it has a new owner."""

    def __init__(self, num_slots: int, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._generation = np.full(num_slots, -1, np.int32)
        self.flags = np.zeros(num_slots, np.uint8)
        self.kinds = np.zeros(num_slots, np.int32)  # see draw.draw_kind
        self.columns = np.zeros((4, num_slots), np.float32)  # see draw.DrawStep
        self.seeds = np.zeros(num_slots, np.uint64)
        self.num_logprobs = np.full(num_slots, -1, np.int32)
        self.edits: dict[int, LogitEdits] = {}
        self.asking = set[int]()  # slots with a flag

    def refresh(self, slots: Ints, mirror: Mirror) -> list[int]:
        """Reads the settings of those slots that have a new owner, and returns them."""
        stale = slots[self._generation[slots] != mirror.generation[slots]]
        for slot in stale:
            self._read(int(slot), mirror.sampling[slot])
        self._generation[stale] = mirror.generation[stale]
        return [int(slot) for slot in stale]

    def _read(self, slot: int, s: Sampling) -> None:
        self.edits.pop(slot, None)
        if s.logit_bias or (s.min_tokens and s.stop_token_ids and not s.grammar):
            self.edits[slot] = self._read_edits(s)
        random = s.temperature >= _MIN_TEMPERATURE
        self.flags[slot] = (
            RANDOM * random
            | EDITS * (slot in self.edits)
            | PENALTIES * has_penalties(s)
            | LOGPROBS * (s.num_logprobs >= 0)
            | GRAMMAR * bool(s.grammar)
        )
        (self.asking.add if self.flags[slot] else self.asking.discard)(slot)
        self.num_logprobs[slot] = s.num_logprobs
        self.seeds[slot] = s.seed & _SEED_MASK
        self.kinds[slot] = draw_kind(s.top_k, s.top_p, self._vocab_size)
        self.columns[:, slot] = (
            min(s.temperature, LARGEST),
            math.log(s.min_p) if s.min_p > 0 else -math.inf,
            s.top_k if 0 < s.top_k < self._vocab_size else self._vocab_size,
            s.top_p if s.top_p < 1 else math.inf,
        )

    def _read_edits(self, s: Sampling) -> LogitEdits:
        """Ids outside the vocabulary have no logit to change; with a grammar, its mask forbids what min_tokens does."""
        bias = [(token, value) for token, value in s.logit_bias if 0 <= token < self._vocab_size]
        stop_ids = [token for token in s.stop_token_ids if 0 <= token < self._vocab_size and not s.grammar]
        return LogitEdits(
            bias_ids=np.array([token for token, _ in bias], np.int64),
            bias=np.array([value for _, value in bias], np.float32),
            stop_ids=np.array(stop_ids, np.int64),
            min_tokens=s.min_tokens,
        )
