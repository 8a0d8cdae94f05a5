"""Decodes in as many cohorts as there are stages, equal within one, so that every stage always has one to work on.

Steps rotate over the cohorts, least recently planned first; empty ones are skipped. A step that comes P steps after a
sequence's last one waits for nothing: the token has passed every stage. Members leave as they end, so a cohort may
grow larger than another: when its turn comes, its surplus is withheld and moved to the smallest cohort, whose turn is
later in the same round, and no stage idles for it.

Inside a cohort the members are kept in the order of their last step, oldest first: a budget below the cohort's size
cuts the row of the step, and whoever was cut off is first the next time.
"""

from __future__ import annotations

import numpy as np

from .slots import NEVER, Slots, SlotTable

_NOBODY = np.empty(0, np.intp)


class Cohort:
    """Some of the running decodes."""

    __slots__ = ("has_leavers", "index", "last_step", "size", "slots")

    def __init__(self, index: int) -> None:
        self.index = index
        self.slots: Slots = _NOBODY  # [size + leavers]
        self.size = 0
        self.last_step = NEVER  # of the newest plan that served it
        self.has_leavers = False  # some slots are no members any more


class Cohorts:
    """Who decodes with whom, and whose turn it is. Membership is `SlotTable.cohort`."""

    def __init__(self, num_stages: int, table: SlotTable, max_unresolved: int) -> None:
        self._num_stages = num_stages
        self._table = table
        self._max_unresolved = max_unresolved
        self._cohorts = [Cohort(index) for index in range(num_stages)]
        self.num_members = 0

    @property
    def sizes(self) -> list[int]:
        return [cohort.size for cohort in self._cohorts]

    def join(self, slot: int, step: int, own: int = -1) -> None:
        """A sequence planned in `step` becomes a member of the smallest cohort; ties go to `own`, the step's."""
        sizes = self.sizes
        smallest = min(sizes)
        index = own if own >= 0 and sizes[own] == smallest else sizes.index(smallest)
        cohort = self._cohorts[index]
        if not cohort.size:
            cohort.last_step = step
        cohort.slots = np.concatenate((self._members(cohort), np.array([slot], np.intp)))
        self._count_in(cohort, slot)

    def leave(self, slot: int) -> None:
        """The member decodes no more. O(1): the cohort drops it at its next turn."""
        cohort = self._cohorts[self._table.cohort[slot]]
        self._table.cohort[slot] = -1
        cohort.has_leavers = True
        cohort.size -= 1
        self.num_members -= 1

    def next_turn(self, step: int) -> tuple[Cohort, Slots] | None:
        """The least recent cohort with members that wait for nothing in `step`, and these; None when there are none."""
        for cohort in sorted((c for c in self._cohorts if c.size), key=_last_step):
            self._move_surplus(cohort)
            slots = self._members(cohort)
            rested = self._table.last_step[slots] <= step - self._num_stages
            able = (rested & self._has_room(slots)).nonzero()[0]
            if len(able):
                return cohort, slots if len(able) == len(slots) else slots[able]
        return None

    def waiting_turn(self) -> tuple[Cohort, Slots] | None:
        """The least recent cohort with members that may run as soon as their tokens are back; None without any."""
        for cohort in self._cohorts:
            self._move_surplus(cohort)
        for cohort in sorted((c for c in self._cohorts if c.size), key=_last_step):
            slots = self._members(cohort)
            able = self._has_room(slots).nonzero()[0]
            if len(able):
                return cohort, slots[able]
        return None

    def note_turn(self, cohort: Cohort, num_served: int, step: int) -> None:
        """A plan serves so many of the cohort, who have `step` as their last: they go behind the others."""
        cohort.last_step = step
        if num_served < cohort.size:
            slots = self._members(cohort)
            served = self._table.last_step[slots] == step
            cohort.slots = np.concatenate((slots[~served], slots[served]))

    def _has_room(self, slots: Slots) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """Which of them may have one more unresolved token."""
        unresolved = self._table.num_scheduled[slots] - self._table.num_known[slots] + 1
        return unresolved < self._max_unresolved

    def _members(self, cohort: Cohort) -> Slots:
        if cohort.has_leavers:
            cohort.slots = cohort.slots[self._table.cohort[cohort.slots] == cohort.index]
            cohort.has_leavers = False
        return cohort.slots

    def _move_surplus(self, cohort: Cohort) -> None:
        while cohort.size > min(self.sizes) + 1:
            smallest = min(self._cohorts, key=_size_then_turn)
            slots = self._members(cohort)
            moved, cohort.slots = int(slots[-1]), slots[:-1]
            cohort.size -= 1
            self.num_members -= 1
            if not smallest.size:
                smallest.last_step = int(self._table.last_step[moved])
            smallest.slots = np.concatenate((np.array([moved], np.intp), self._members(smallest)))
            self._count_in(smallest, moved)

    def _count_in(self, cohort: Cohort, slot: int) -> None:
        self._table.cohort[slot] = cohort.index
        cohort.size += 1
        self.num_members += 1

    def check(self) -> None:
        """Asserts that no sequence is in two cohorts or twice in one, and the counts; changes nothing."""
        seen: set[int] = set()
        for cohort in self._cohorts:
            members = [slot for slot in cohort.slots.tolist() if self._table.cohort[slot] == cohort.index]
            assert cohort.has_leavers or len(members) == len(cohort.slots), f"cohort {cohort.index} has strangers"
            assert len(members) == cohort.size, f"cohort {cohort.index}: {len(members)} members, size {cohort.size}"
            assert len(set(members)) == len(members), f"a slot twice in cohort {cohort.index}: {members}"
            assert not seen.intersection(members), f"a slot in two cohorts: {seen.intersection(members)}"
            seen.update(members)
        assert len(seen) == self.num_members == int((self._table.cohort >= 0).sum())


def _last_step(cohort: Cohort) -> int:
    return cohort.last_step


def _size_then_turn(cohort: Cohort) -> tuple[int, int]:
    return cohort.size, cohort.last_step
