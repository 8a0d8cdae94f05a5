"""Builds the next plan: whose turn it is, which rows fit, which blocks they need.

A step that waits for nothing goes before one that waits for tokens: first the least recent cohort, if its tokens are
back by then, with a share of prefill; else a step of prefill alone; else the decodes that must wait for their tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .cohorts import Cohort
from .lifecycle import Lifecycle
from .plan import MAX_REGISTRATIONS, Ints, Registration, StepPlan, ints
from .policy import Load, PrefillPolicy
from .request import Request
from .slots import Slots

_NO_ROWS = np.empty(0, np.intp)


@dataclass(slots=True)
class Draft:
    """A plan under construction: decode rows, then prefill rows."""

    step: int
    cohort: int = -1
    decodes: Slots = field(default_factory=lambda: _NO_ROWS)  # [D] one token each
    prefill_slots: list[int] = field(default_factory=list)  # [F]
    prefill_counts: list[int] = field(default_factory=list)  # [F]
    partial_chunks: list[int] = field(default_factory=list)  # indices of the prefill rows that don't sample
    registrations: list[Registration] = field(default_factory=list)
    block_slots: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.decodes) + len(self.prefill_slots)

    def grant(self, slot: int, blocks: list[int]) -> None:
        """Blocks for the slot's table; at most once for a slot and plan."""
        self.block_slots += [slot] * len(blocks)
        self.block_ids += blocks


@dataclass(slots=True)
class Flight:
    """What the scheduler remembers of a plan until its result comes."""

    step: int
    slots: Slots  # [S] the rows
    generations: Ints  # [S]
    sample_rows: Slots | None  # [R] None: all of them


class Assembler:
    """Drafts plans from the lifecycle's state."""

    def __init__(self, life: Lifecycle, policy: PrefillPolicy) -> None:
        self._life = life
        self._policy = policy
        self._config = life.config
        self._must_retire = not life.config.async_scheduling
        self._needs_context = life.config.step_cost is not None

    def draft(self, step: int) -> Draft:
        """The next step's rows, none when nothing can run now."""
        self._life.prefix.begin_step()
        draft = Draft(step)
        cohorts = self._life.cohorts
        turn = cohorts.next_turn(step)
        if turn is not None:
            self._decode(draft, *turn)
        self._prefill(draft)
        if not draft.num_rows and (turn := cohorts.waiting_turn()) is not None:
            self._decode(draft, *turn)
            if not draft.num_rows:  # all of them were preempted: prefill can have their blocks
                self._prefill(draft)
        return draft

    def unblock(self) -> bool:
        """With nothing in flight and no row to plan: whether another attempt can plan one.

        Either the head of the queue is hashed further by each attempt, or chunked prompts hold the whole cache between
        them, and the latest gives its blocks to the others.
        """
        life = self._life
        if len(life.prefilling) > 1:
            life.preempt_latest()
            return True
        return not life.prefilling and life.queue.head() is not None

    def publish(self, draft: Draft) -> tuple[StepPlan, Flight]:
        """The draft as a plan, and what to remember of it."""
        self._life.reserve.note_step()
        slots, sample_rows = draft.decodes, None
        counts = np.ones(draft.num_rows, np.int32)
        if draft.prefill_slots:
            num_decodes = len(slots)
            slots = np.concatenate((slots, np.array(draft.prefill_slots, np.intp)))
            counts[num_decodes:] = draft.prefill_counts
            if draft.partial_chunks:
                samples = np.ones(len(slots), np.bool_)
                samples[[num_decodes + index for index in draft.partial_chunks]] = False
                sample_rows = samples.nonzero()[0]
        plan = StepPlan(
            step=draft.step,
            slots=slots.astype(np.int32),
            num_tokens=counts,
            epoch=self._config.epoch,
            cohort=draft.cohort,
            released=self._life.table.drain_released(),
            registrations=draft.registrations,
            block_slots=ints(draft.block_slots),
            block_ids=ints(draft.block_ids),
        )
        return plan, Flight(draft.step, slots, self._life.table.generation[slots], sample_rows)

    def _decode(self, draft: Draft, cohort: Cohort, slots: Slots) -> None:
        """One token for each of the slots, as far as the budget and, after preemptions, the cache allow."""
        life, table = self._life, self._life.table
        slots, needy = self._make_room(cohort, slots[: self._config.max_num_batched_tokens])
        if not len(slots):
            return
        if len(needy):
            draft.block_slots = needy.tolist()
            draft.block_ids = life.grow_by_one(draft.block_slots)
        scheduled = table.num_scheduled[slots] + 1
        table.num_scheduled[slots] = scheduled
        table.last_step[slots] = draft.step
        life.cohorts.note_turn(cohort, len(slots), draft.step)
        last = (scheduled + 2 > table.limit[slots]).nonzero()[0]
        for slot in slots[last].tolist() if len(last) else ():
            life.fully_planned(table.holder(slot))
        draft.cohort, draft.decodes = cohort.index, slots

    def _make_room(self, cohort: Cohort, slots: Slots) -> tuple[Slots, Slots]:
        """Preempts until there is a block for each row that needs one; the rows that are left, and those in need."""
        life, table = self._life, self._life.table
        while True:
            needy = slots[(table.num_scheduled[slots] >= table.capacity[slots]).nonzero()[0]]
            if len(needy) <= life.pool.num_free:
                return slots, needy
            life.preempt_latest()
            slots = slots[table.cohort[slots] == cohort.index]

    def _prefill(self, draft: Draft) -> None:
        """Chunks of known tokens: first of requests already begun, then of the queue's head."""
        life = self._life
        tokens_left = self._policy.prefill_tokens(self._load(draft))
        for request in list(life.prefilling):
            if not tokens_left:
                return
            if self._must_retire and life.table.last_step[request.slot] > life.last_retired_step:
                continue
            count = self._continue(draft, request, tokens_left)
            tokens_left -= count
            if request in life.prefilling and tokens_left:  # the cache is full; who comes later waits behind it
                return
        while tokens_left and life.table.num_free and not life.preempted:
            head = life.queue.head()
            if head is None or len(draft.registrations) == MAX_REGISTRATIONS:
                return
            count = self._admit(draft, head, tokens_left)
            if not count:
                return
            tokens_left -= count

    def _load(self, draft: Draft) -> Load:
        life, num_scheduled = self._life, self._life.table.num_scheduled
        waiting_tokens = life.num_prefill_tokens()
        context = running_context = 0
        if self._needs_context and waiting_tokens:
            context = int(num_scheduled[draft.decodes].sum())
            running_context = int(num_scheduled @ (life.table.cohort >= 0))
        return Load(
            waiting_tokens=waiting_tokens,
            running_decodes=life.cohorts.num_members,
            free_share=life.pool.num_free / life.pool.num_blocks,
            reserve=life.reserve.share,
            budget=self._config.max_num_batched_tokens - len(draft.decodes),
            num_decodes=len(draft.decodes),
            context=context,
            running_context=running_context,
        )

    def _num_spare_blocks(self, others_run: bool) -> int:
        """Blocks that prefill may take; the reserve is for the growth of others."""
        pool = self._life.pool
        return max(0, pool.num_free - (int(self._life.reserve.share * pool.num_blocks) if others_run else 0))

    def _continue(self, draft: Draft, request: Request, max_tokens: int) -> int:
        """The next chunk of a request that has begun; its tokens, fewer than asked where the cache has no room."""
        life, size = self._life, self._config.block_size
        start = int(life.table.num_scheduled[request.slot])
        spare = self._num_spare_blocks(others_run=life.cohorts.num_members > 0)
        room = (len(request.blocks) + spare) * size - start
        count = min(max_tokens, len(request.tokens) - start, room)
        if count > 0:
            num_new = -(-(start + count) // size) - len(request.blocks)
            draft.grant(request.slot, life.grow(request, num_new) if num_new > 0 else [])
            self._add_chunk(draft, request, start, count)
        return max(count, 0)

    def _admit(self, draft: Draft, request: Request, max_tokens: int) -> int:
        """A slot and a first chunk for the queue's head, if blocks for all of it fit beyond the reserve."""
        life, size = self._life, self._config.block_size
        hits = [] if request.wants_prompt_logprobs else life.prefix.match(request)
        if hits is None:
            return 0
        start = len(hits) * size
        count = min(max_tokens, len(request.tokens) - start)
        num_new = -(-(start + count) // size) - len(hits)
        others_run = life.table.num_free < life.table.num_slots
        if num_new + life.pool.num_unheld(hits) > self._num_spare_blocks(others_run):
            return 0
        life.admit(request, hits, num_new)
        if not request.wants_prompt_logprobs:
            life.num_prefix_query_tokens += len(request.tokens)
            life.num_prefix_hit_tokens += start
        draft.registrations.append(self._registration(request, start))
        draft.grant(request.slot, request.blocks)
        self._add_chunk(draft, request, start, count)
        return count

    def _add_chunk(self, draft: Draft, request: Request, start: int, count: int) -> None:
        life, slot = self._life, request.slot
        end = start + count
        life.table.num_scheduled[slot] = end
        life.table.last_step[slot] = draft.step
        life.prefix.add(request, end)
        draft.prefill_slots.append(slot)
        draft.prefill_counts.append(count)
        if end == len(request.tokens):
            life.prefilled(request, draft.step, draft.cohort)
        else:
            draft.partial_chunks.append(len(draft.prefill_slots) - 1)

    def _registration(self, request: Request, num_computed: int) -> Registration:
        return Registration(
            slot=request.slot,
            generation=int(self._life.table.generation[request.slot]),
            num_computed_tokens=num_computed,
            num_prompt_tokens=request.num_prompt,
            token_ids=request.known_tokens(),
            sampling=request.remaining_sampling,
        )
