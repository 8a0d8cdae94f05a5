"""Slots 0 to max_num_seqs - 1: who holds them, and the lengths of their holders as columns.

A slot's generation counts how often it was given back, within 15 bits; a result carries no generation, but the
scheduler notes each step's, so that whatever comes for a former owner is told apart by one comparison.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .plan import Ints, ints
from .request import NOBODY, Request

Slots = NDArray[np.intp]  # the index type of NumPy: gathers by it need no conversion
GENERATIONS = 1 << 15
NEVER = -(1 << 40)  # a step long before the first


class SlotTable:
    """Columns addressed by slot; `request.py` says what the lengths mean."""

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.num_slots = num_slots
        self._block_size = block_size
        self.requests = [NOBODY] * num_slots
        self.generation = np.zeros(num_slots, np.int32)
        self.num_prompt = np.zeros(num_slots, np.int64)
        self.num_registered = np.zeros(num_slots, np.int64)
        self.num_known = np.zeros(num_slots, np.int64)
        self.num_scheduled = np.zeros(num_slots, np.int64)
        self.limit = np.zeros(num_slots, np.int64)
        self.capacity = np.zeros(num_slots, np.int64)  # tokens that the holder's blocks have room for
        self.last_step = np.full(num_slots, NEVER, np.int64)  # the newest plan with a row for this slot
        self.cohort = np.full(num_slots, -1, np.int64)  # -1 none
        self._free = list(range(num_slots - 1, -1, -1))
        self._released: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, request: Request, num_computed: int) -> int:
        """Gives the request a slot, as its tokens now are; the blocks it holds are its capacity."""
        slot = self._free.pop()
        request.slot = slot
        self.requests[slot] = request
        self.num_prompt[slot] = request.num_prompt
        self.num_registered[slot] = self.num_known[slot] = len(request.tokens)
        self.num_scheduled[slot] = num_computed
        self.limit[slot] = request.limit
        self.capacity[slot] = len(request.blocks) * self._block_size
        self.last_step[slot] = NEVER
        return slot

    def release(self, slot: int) -> None:
        """Takes the slot back; whatever is in flight for it turns stale, and the next plan says so."""
        request = self.holder(slot)
        assert self.cohort[slot] < 0, f"slot {slot} released while in cohort {self.cohort[slot]}"
        request.slot = -1
        self.requests[slot] = NOBODY
        self.generation[slot] = (self.generation[slot] + 1) % GENERATIONS
        self._free.append(slot)
        self._released.append(slot)

    def drain_released(self) -> Ints:
        """The slots released since the last plan."""
        released, self._released = self._released, []
        return ints(released)

    def holder(self, slot: int) -> Request:
        """The request that holds the slot."""
        request = self.requests[slot]
        assert request is not NOBODY, f"slot {slot} has no holder"
        return request

    def held(self) -> list[Request]:
        """The requests that hold a slot, by slot."""
        return [request for request in self.requests if request is not NOBODY]

    def check(self) -> None:
        """Asserts the invariants of slots and lengths."""
        held = self.held()
        assert len(held) + len(self._free) == self.num_slots == len(set(self._free)) + len({r.slot for r in held})
        for request in held:
            slot = request.slot
            assert self.requests[slot] is request, f"slot {slot} is not its request's"
            known, scheduled = int(self.num_known[slot]), int(self.num_scheduled[slot])
            assert known == len(request.tokens), f"slot {slot}: {known} known, {len(request.tokens)} in the log"
            assert request.num_prompt <= self.num_registered[slot] <= known <= request.limit
            assert scheduled <= known + 1, f"slot {slot}: more than two unresolved tokens"
            assert scheduled < request.limit, f"slot {slot}: planned past its limit {request.limit}"
            assert self.capacity[slot] == len(request.blocks) * self._block_size
