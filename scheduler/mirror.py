"""A stage's mirror of the scheduler's slots: applies plans in order and derives everything a step needs.

The mirror decides nothing. All that it computes is a pure function of the plans applied so far, so that every rank of
every stage agrees on shapes, on which rows sample, and on which token messages are received before which step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .plan import GREEDY, Ints, Registration, Sampling, StepPlan, ints

_TRUE = np.array([True])


@dataclass(slots=True)
class TokenReturn:
    """The sampled tokens of one step on their way from the last stage to stage 0."""

    step: int
    slots: Ints  # [R] where the tokens go in the FutureMap, in row order


@dataclass(slots=True)
class StepInput:
    """One step as host arrays, the same on every rank."""

    plan: StepPlan
    slots: Ints  # [S]
    num_tokens: Ints  # [S]
    starts: Ints  # [S] position of each row's first token
    seq_lens: Ints  # [S] starts + num_tokens: keys that the row's last token attends to
    query_starts: Ints  # [S + 1] offsets of the rows in the step's tokens
    positions: Ints  # [T]
    token_ids: Ints  # [T] known tokens; ~slot where the FutureMap has it
    sample_rows: Ints  # [R] rows that sample a token
    tables: NDArray[np.int32]  # [slots, most blocks] the mirror's own
    block_places: Ints  # [B] where the plan's block_ids go in the table of all slots, flat
    block_size: int
    is_steady: bool  # every row has one token, from the FutureMap, and samples the next
    returns: list[TokenReturn]  # messages that stage 0 receives before this step, in order

    @property
    def step(self) -> int:
        return self.plan.step

    @property
    def num_rows(self) -> int:
        return len(self.slots)

    @property
    def total_tokens(self) -> int:
        return len(self.positions)

    @property
    def all_decode(self) -> bool:
        """Whether every row has one token."""
        return len(self.positions) == len(self.slots)

    @property
    def block_table(self) -> NDArray[np.int32]:
        """[S, most blocks of a row] anything beyond a row's own. Asked for before the mirror applies the next plan."""
        longest = int(self.seq_lens.max(initial=1))
        return self.tables[self.slots, : -(-longest // self.block_size)]

    @property
    def cache_slots(self) -> Ints:
        """[T] where each token's key and value go, block id * block size + offset; as long as `block_table`."""
        rows = self.slots if self.all_decode else np.repeat(self.slots, self.num_tokens)
        blocks = self.tables[rows, self.positions // self.block_size]
        return blocks * self.block_size + self.positions % self.block_size

    @property
    def sample_offsets(self) -> Ints:
        """[R] offsets in the step's tokens of those whose successors are sampled."""
        return self.sample_rows if self.is_steady else self.query_starts[1:][self.sample_rows] - 1

    @property
    def sample_slots(self) -> Ints:
        """[R] slots of the rows that sample."""
        return self.slots if self.is_steady else self.slots[self.sample_rows]


class Mirror:
    """Slot-addressed state of the sequences that the scheduler has registered."""

    def __init__(self, num_slots: int, max_blocks_per_seq: int, block_size: int, max_unretired: int = 16) -> None:
        """`max_unretired` is how many plans there can be without a result."""
        assert num_slots * max_blocks_per_seq < 1 << 31, "flat places in the table are 32 bit integers"
        self.block_size = block_size
        self._max_unretired = max_unretired
        self.num_computed = np.zeros(num_slots, np.int32)
        self.num_known = np.zeros(num_slots, np.int32)  # registered tokens; later ones live in the FutureMap
        self.num_prompt = np.zeros(num_slots, np.int32)
        self.num_blocks = np.zeros(num_slots, np.int32)
        self.block_table = np.zeros((num_slots, max_blocks_per_seq), np.int32)
        self._flat_table = self.block_table.reshape(-1)
        self.generation = np.full(num_slots, -1, np.int32)  # -1: nobody's
        self.last_sample_step = np.full(num_slots, -1, np.int64)
        self.token_ids: list[Ints | None] = [None] * num_slots
        self._reading = set[int]()  # slots with known tokens to be computed
        self.sampling: list[Sampling] = [GREEDY] * num_slots
        self._counting = ints(range(num_slots + 1))  # steps share it
        self._unreceived: deque[TokenReturn] = deque()
        self._next_step = 0

    def apply(self, plan: StepPlan) -> StepInput:
        """Applies the next plan and returns the step's arrays. Plans must come in order, without gaps."""
        assert plan.step == self._next_step, f"plan {plan.step} arrived, {self._next_step} was expected"
        self._next_step += 1
        for slot in plan.released:
            self._release(int(slot))
        for registration in plan.registrations:
            self._register(registration)
        return self._derive(plan, self._grant_blocks(plan.block_slots, plan.block_ids))

    def _release(self, slot: int) -> None:
        assert self.generation[slot] >= 0, f"slot {slot} released while free"
        self.generation[slot] = -1
        self.token_ids[slot] = None
        self._reading.discard(slot)

    def _register(self, r: Registration) -> None:
        assert self.generation[r.slot] < 0, f"slot {r.slot} registered while taken"
        self.generation[r.slot] = r.generation
        self.num_computed[r.slot] = r.num_computed_tokens
        self.num_known[r.slot] = len(r.token_ids)
        self.num_prompt[r.slot] = r.num_prompt_tokens
        self.num_blocks[r.slot] = 0
        self.last_sample_step[r.slot] = -1
        self.token_ids[r.slot] = r.token_ids
        if r.num_computed_tokens < len(r.token_ids):
            self._reading.add(r.slot)
        self.sampling[r.slot] = r.sampling

    def _grant_blocks(self, slots: Ints, block_ids: Ints) -> Ints:
        """Appends the blocks to their slots' tables; the places, flat."""
        if not len(slots):
            return slots
        changes = slots[1:] != slots[:-1]
        if changes.all():  # a block each, as decodes need
            places = slots * self.block_table.shape[1] + self.num_blocks[slots]
            self.num_blocks[slots] += 1
        else:
            run_starts = np.flatnonzero(np.concatenate((_TRUE, changes)))
            run_lengths = np.diff(run_starts, append=len(slots)).astype(np.int32)
            ranks = ints(np.arange(len(slots)) - np.repeat(run_starts, run_lengths))
            places = slots * self.block_table.shape[1] + self.num_blocks[slots] + ranks
            self.num_blocks[slots[run_starts]] += run_lengths
        self._flat_table[places] = block_ids
        return places

    def _derive(self, plan: StepPlan, block_places: Ints) -> StepInput:
        slots, counts = plan.slots, plan.num_tokens
        starts = self.num_computed[slots]
        seq_lens = starts + counts
        is_steady = not self._reading or self._reading.isdisjoint(slots.tolist())
        if is_steady:
            rows = self._counting[: len(slots) + 1]
            query_starts, sample_rows, positions, tokens, future_slots = rows, rows[:-1], starts, ~slots, slots
        else:
            known = self.num_known[slots]
            query_starts = np.zeros(len(slots) + 1, np.int32)
            np.cumsum(counts, out=query_starts[1:])
            sample_rows = ints(np.flatnonzero(seq_lens >= known))
            positions = ints(np.arange(query_starts[-1]) + np.repeat(starts - query_starts[:-1], counts))
            tokens = self._tokens(slots, counts, starts, seq_lens, query_starts, known)
            future_slots = slots[starts >= known]
            self._reading.difference_update(slots[sample_rows].tolist())
        inputs = StepInput(
            plan=plan,
            slots=slots,
            num_tokens=counts,
            starts=starts,
            seq_lens=seq_lens,
            query_starts=query_starts,
            positions=positions,
            token_ids=tokens,
            sample_rows=sample_rows,
            tables=self.block_table,
            block_places=block_places,
            block_size=self.block_size,
            is_steady=is_steady,
            returns=self._due_returns(future_slots),
        )
        self.num_computed[slots] = seq_lens
        self._note_samples(plan.step, slots if is_steady else inputs.sample_slots)
        return inputs

    def _tokens(self, slots: Ints, counts: Ints, starts: Ints, ends: Ints, query_starts: Ints, known: Ints) -> Ints:
        tokens = np.repeat(~slots, counts)
        for row in np.flatnonzero(starts < known):
            source = self.token_ids[slots[row]]
            assert source is not None, f"slot {slots[row]} has a row but no tokens"
            assert ends[row] <= known[row], f"slot {slots[row]}: chunk past its known tokens"
            tokens[query_starts[row] : query_starts[row + 1]] = source[starts[row] : ends[row]]
        return tokens

    def _due_returns(self, future_slots: Ints) -> list[TokenReturn]:
        """Messages up to the newest step that one of these slots was sampled in, and the oldest of too many.

        The latter bring tokens that nobody asks for, as of requests that have ended. Their steps are retired, so
        nothing waits for them; but left under way they would fill the link, and then the sender's buffers.
        """
        newest = self.last_sample_step[future_slots].max(initial=-1)
        due: list[TokenReturn] = []
        while self._unreceived and (self._unreceived[0].step <= newest or len(self._unreceived) > self._max_unretired):
            due.append(self._unreceived.popleft())
        return due

    def _note_samples(self, step: int, slots: Ints) -> None:
        if len(slots):
            self.last_sample_step[slots] = step
            self._unreceived.append(TokenReturn(step, slots))
