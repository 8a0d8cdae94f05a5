"""A request's way through the scheduler: every change of state, and every change of ownership of slots and blocks.

    WAITING -> PREFILLING -> DECODING -> LAST -> FINISHED
       ^           v            v         v
       `------------------ PREEMPTED --------> FINISHED

A preempted request gives its blocks up at once, keeps its slot until the steps already planned for it have retired
(their tokens are kept, and may end it), and then waits at the queue's front. Aborts and errors finish a request from
any state.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import get_args

from .blocks import BlockPool
from .cohorts import Cohorts
from .config import SchedulerConfig
from .messages import FinishReason
from .outbox import Outbox
from .policy import AdaptiveReserve
from .prefix import NoPrefixCache, PrefixCache, PrefixIndex
from .request import Request, State
from .slots import SlotTable
from .stop import StopIds
from .waiting import WaitingQueue, arrival_of


class Lifecycle:
    """Owns all that requests hold."""

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.requests: dict[tuple[str, str], Request] = {}  # unfinished
        self.queue = WaitingQueue()
        self.table = SlotTable(config.max_num_seqs, config.block_size)
        self.cohorts = Cohorts(config.num_stages, self.table, max_unresolved=2 if config.async_scheduling else 1)
        self.prefix: PrefixCache = (
            PrefixIndex(config.num_blocks, config.block_size) if config.enable_prefix_caching else NoPrefixCache()
        )
        self.pool = BlockPool(config.num_blocks, self.prefix)
        self.reserve = AdaptiveReserve(config.kv_reserve)
        self.stop_ids = StopIds()
        self.outbox = Outbox()
        self.prefilling: list[Request] = []  # by arrival
        self.preempted: list[Request] = []  # by time of preemption
        self.last_retired_step = -1
        self.first_planned_s: list[float] = []  # `arrived_s` of those that the newest plan holds as the first one
        self.num_finished: dict[FinishReason, int] = dict.fromkeys(get_args(FinishReason), 0)
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0
        self.num_preemptions = 0
        self.num_prefix_query_tokens = 0
        self.num_prefix_hit_tokens = 0

    def accept(self, request: Request) -> None:
        """A new request joins the queue."""
        self.outbox.forget(request.key)
        self.requests[request.key] = request
        self.stop_ids.add(request.stop)
        self.queue.append(request)

    def admit(self, request: Request, hits: list[int], num_new_blocks: int) -> None:
        """The queue's head gets a slot, blocks found in the prefix cache, and new ones behind them."""
        self.queue.remove(request)
        self.pool.hold(hits)
        request.blocks = hits + self.pool.allocate(num_new_blocks)
        request.num_indexed = len(hits)
        num_computed = len(hits) * self.config.block_size
        if request.num_cached_tokens < 0:
            request.num_cached_tokens = num_computed
            self.num_prompt_tokens += request.num_prompt
            self.first_planned_s.append(request.arrived_s)
        request.state = State.PREFILLING
        insort(self.prefilling, request, key=arrival_of)
        self.table.take(request, num_computed)

    def grow(self, request: Request, num_blocks: int) -> list[int]:
        """Appends free blocks to the request's table."""
        blocks = self.pool.allocate(num_blocks)
        request.blocks += blocks
        self.table.capacity[request.slot] += num_blocks * self.config.block_size
        return blocks

    def grow_by_one(self, slots: list[int]) -> list[int]:
        """One free block more for each of these decodes; what they have filled so far is known, and gets indexed."""
        blocks = self.pool.allocate(len(slots))
        for slot, block in zip(slots, blocks, strict=True):
            request = self.table.requests[slot]
            self.prefix.add(request, len(request.blocks) * self.config.block_size)
            request.blocks.append(block)
        self.table.capacity[slots] += self.config.block_size
        return blocks

    def prefilled(self, request: Request, step: int, cohort: int) -> None:
        """Its last known token is planned in `step`: if it may have a second new one, it decodes from now on."""
        request.prompt_scoring_planned = True
        if self.table.num_scheduled[request.slot] + 2 > request.limit:
            self.fully_planned(request)
            return
        self.prefilling.remove(request)
        request.state = State.DECODING
        self.cohorts.join(request.slot, step, cohort)

    def fully_planned(self, request: Request) -> None:
        """The last token that it may have is planned."""
        self._leave_state(request)
        request.state = State.LAST

    def preempt_latest(self) -> None:
        """Takes the blocks of somebody who needs none any more, or else of the latest arrival."""
        request = max((request for request in self.table.held() if request.blocks), key=_least_loss)
        if request.state is not State.LAST:
            self.num_preemptions += 1
            self.reserve.note_preemption()
        self._leave_state(request)
        self._free_blocks(request)
        request.state = State.PREEMPTED
        self.preempted.append(request)
        self.requeue_drained()

    def requeue_drained(self) -> None:
        """Preempted requests without a planned step in flight release their slots and wait again."""
        for request in list(self.preempted):
            if self.table.last_step[request.slot] <= self.last_retired_step:
                self.preempted.remove(request)
                self.table.release(request.slot)
                self.queue.resume(request)

    def finish(self, request: Request, reason: FinishReason, stop_reason: int | None = None) -> None:
        """The end, from any state: everything it holds is free at once."""
        self._leave_state(request)
        if request.slot >= 0:
            self._free_blocks(request)
            self.table.release(request.slot)
        request.state = State.FINISHED
        request.finish_reason, request.stop_reason = reason, stop_reason
        self.num_finished[reason] += 1
        self.stop_ids.remove(request.stop)
        del self.requests[request.key]
        self.outbox.keep(request)

    def _leave_state(self, request: Request) -> None:
        if request.state is State.WAITING:
            self.queue.remove(request)
        elif request.state is State.PREFILLING:
            self.prefilling.remove(request)
        elif request.state is State.DECODING:
            self.cohorts.leave(request.slot)
        elif request.state is State.PREEMPTED:
            self.preempted.remove(request)

    def _free_blocks(self, request: Request) -> None:
        if not request.blocks:
            return
        num_written = int(min(self.table.num_scheduled[request.slot], self.table.num_known[request.slot]))
        self.prefix.add(request, num_written)
        self.pool.free(request.blocks)
        request.blocks = []
        request.num_indexed = 0
        self.table.capacity[request.slot] = 0

    def num_prefill_tokens(self) -> int:
        """Known tokens that no plan holds yet."""
        num_scheduled = self.table.num_scheduled
        started = sum(len(request.tokens) - int(num_scheduled[request.slot]) for request in self.prefilling)
        return self.queue.num_tokens + started

    def check(self) -> None:
        """Asserts every invariant of requests, slots, blocks and cohorts."""
        self.table.check()
        self.cohorts.check()
        held = self.table.held()
        self.pool.check(request.blocks for request in held)
        assert len(held) + len(self.queue) == len(self.requests), "a request is neither waiting nor in a slot"
        assert self.queue.num_tokens == sum(len(request.tokens) for request in self.queue)
        assert all(request.state is State.WAITING and not request.blocks for request in self.queue)
        stopping = {t for r in self.requests.values() for t in (*r.stop.eos_token_ids, *r.stop.stop_token_ids)}
        assert self.stop_ids.ids == stopping, f"ids {self.stop_ids.ids ^ stopping} stop nobody, or are forgotten"
        assert _by_arrival(self.prefilling) == _by_arrival(r for r in held if r.state is State.PREFILLING)
        assert _by_arrival(self.preempted) == _by_arrival(r for r in held if r.state is State.PREEMPTED)
        for request in held:
            is_member = bool(self.table.cohort[request.slot] >= 0)
            assert is_member == (request.state is State.DECODING), f"slot {request.slot}: {request.state.name}"


def _least_loss(request: Request) -> tuple[bool, int]:
    return request.state is State.LAST, request.arrival


def _by_arrival(requests: Iterable[Request]) -> list[int]:
    return sorted(request.arrival for request in requests)
