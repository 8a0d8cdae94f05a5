"""Repetition, presence and frequency penalties: token counts on the device, for the slots that ask and no others.

A slot that asks gets a row of counts when its sequence samples first, built from the registered tokens (so a sequence
resumes exactly after a preemption), and every sampled token is added on the device. All device state is written on the
compute stream in plan order; a slot's next owner resets the row or gives it back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scheduler.mirror import Mirror
from ..scheduler.plan import Ints, Sampling
from .staging import staged, upload
from .tiles import tiles

_IN_PROMPT = 1 << 30  # flag beside the count of generated tokens
_COUNT = _IN_PROMPT - 1
_FIRST_ROWS = 16
# Of a float32: settings beyond would make no number of a forbidden token's minus infinity.
SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

_Load = tuple[int, Ints, Ints]  # counts row, token ids, their counts and flags


@dataclass(slots=True)
class PenaltyStep:
    """The penalties of one step: P rows that have any, L tokens of sequences whose counts start here."""

    num_count_rows: int  # counts rows that must exist
    rows: Tensor  # [P] int64 into the rows that sample
    count_rows: Tensor  # [P] int64
    factors: Tensor  # [3, P, 1] float32: repetition, frequency, presence
    reset_rows: Tensor  # [any] int64 counts rows that start anew
    load_places: Tensor  # [L] int64, flat, each once
    load_counts: Tensor  # [L] int32


class Penalties:
    """Counts of the slots whose sampling asks for penalties: [num_slots that ask, V], grown as they come."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._num_slots = num_slots
        self._row_of = np.full(num_slots, -1, np.int64)  # [slot] counts row, -1 none
        self._factors = np.ones((3, num_slots), np.float32)
        self._free: list[int] = []
        self._num_rows = 0
        self._loads: list[_Load] = []
        self._counts = torch.empty((0, vocab_size), dtype=torch.int32, device=device)

    def register(self, slot: int, sampling: Sampling, mirror: Mirror) -> None:
        """The slot has a new owner: gives it a counts row, or takes its former owner's away. On the host."""
        if not has_penalties(sampling):
            self._give_back(slot)
            return
        if self._row_of[slot] < 0:
            self._row_of[slot] = self._take_row()
        repetition = min(max(sampling.repetition_penalty, SMALLEST), LARGEST)
        factors = (repetition, sampling.frequency_penalty, sampling.presence_penalty)
        self._factors[:, slot] = factors
        self._loads.append((int(self._row_of[slot]), *self._known_counts(slot, mirror)))

    def prepare(self, rows: NDArray[np.int64], slots: Ints) -> PenaltyStep:
        """The step's tensors for `rows` (of those that sample) and their slots. On the host."""
        loads, self._loads = self._loads, []
        resets = np.array([row for row, _, _ in loads], np.int64)
        places = [row * self._vocab_size + ids.astype(np.int64) for row, ids, _ in loads]
        arrays = (
            rows,
            self._row_of[slots],
            self._factors[:, slots, None],
            resets,
            np.concatenate([np.empty(0, np.int64), *places]),
            np.concatenate([np.empty(0, np.int32), *(counts for _, _, counts in loads)]),
        )
        return PenaltyStep(self._num_rows, *(staged(x, self._device) for x in arrays))

    def load(self, step: PenaltyStep) -> PenaltyStep:
        """Starts the counts of the sequences that are new; the step's tensors on the device. Enqueued, never waits."""
        step = upload(step, self._device)
        self._grow(step.num_count_rows)
        self._counts.index_fill_(0, step.reset_rows, 0)
        self._counts.view(-1).index_copy_(0, step.load_places, step.load_counts)
        return step

    def apply(self, logits: Tensor, step: PenaltyStep) -> None:
        """Penalises the step's rows of logits [R, V] in place. Enqueued, never waits."""
        for rows, count_rows, *factors in tiles(self._vocab_size, step.rows, step.count_rows, *step.factors):
            counts = self._counts.index_select(0, count_rows)
            logits.index_copy_(0, rows, _penalised(logits.index_select(0, rows), counts, factors))

    def add(self, token_ids: Tensor, step: PenaltyStep) -> None:
        """Counts the sampled tokens [R] of the step's rows. Enqueued, never waits."""
        places = step.count_rows * self._vocab_size + token_ids.index_select(0, step.rows)
        self._counts.view(-1).scatter_add_(0, places, torch.ones_like(places, dtype=torch.int32))

    def _known_counts(self, slot: int, mirror: Mirror) -> tuple[Ints, Ints]:
        tokens, num_prompt = mirror.token_ids[slot], mirror.num_prompt[slot]
        assert tokens is not None, f"slot {slot} samples but has no tokens"
        ids, inverse = np.unique(tokens, return_inverse=True)
        counts = np.bincount(inverse[num_prompt:], minlength=len(ids)).astype(np.int32)
        counts[inverse[:num_prompt]] |= _IN_PROMPT
        return ids, counts

    def _take_row(self) -> int:
        if self._free:
            return self._free.pop()
        self._num_rows += 1
        return self._num_rows - 1

    def _give_back(self, slot: int) -> None:
        if self._row_of[slot] >= 0:
            self._free.append(int(self._row_of[slot]))
            self._row_of[slot] = -1

    def _grow(self, num_rows: int) -> None:
        old = self._counts
        if num_rows > len(old):
            size = min(max(num_rows, 2 * len(old), _FIRST_ROWS), self._num_slots)
            self._counts = torch.zeros((size, self._vocab_size), dtype=torch.int32, device=self._device)
            self._counts[: len(old)] = old


def _penalised(x: Tensor, counts: Tensor, factors: list[Tensor]) -> Tensor:
    """Rows [n, V] of logits under the counts [n, V]; a forbidden token stays at minus infinity."""
    repetition, frequency, presence = factors
    x = torch.where(counts != 0, torch.where(x > 0, x / repetition, x * repetition), x)
    generated = counts.bitwise_and_(_COUNT)
    return x.sub_(generated * frequency).sub_((generated > 0) * presence)


def has_penalties(sampling: Sampling) -> bool:
    """Whether the sequence needs counts."""
    off = sampling.repetition_penalty == 1 and sampling.presence_penalty == 0 and sampling.frequency_penalty == 0
    return not off
