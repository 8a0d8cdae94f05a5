"""The scheduler: requests, aborts and results go in, plans and token events come out.

A pure state machine: no clock, no randomness, no I/O. The same calls in the same order give the same plans, byte for
byte. Not safe for threads: one owner calls it.
"""

from __future__ import annotations

from collections import deque

from ..errors import ConfigError
from .assemble import Assembler, Flight
from .config import SchedulerConfig
from .lifecycle import Lifecycle
from .messages import NewRequest, TokenEvent
from .plan import StepPlan, StepResult
from .policy import make_policy
from .request import Request, make_request, refusal
from .retire import retire
from .stats import SchedulerStats

MAX_SLOTS = 1 << 16  # slots travel as 16 bits
_COUNTS = (
    "num_stages",
    "num_blocks",
    "block_size",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_unretired_plans",
    "throttle_steps",
)


class Scheduler:
    """Decides what every step of the pipeline holds."""

    def __init__(self, config: SchedulerConfig) -> None:
        """Raises ConfigError for settings that no scheduler can work with."""
        _check_config(config)
        self.config = config
        self._life = Lifecycle(config)
        self._assembler = Assembler(self._life, make_policy(config))
        self._in_flight: deque[Flight] = deque()
        self._next_step = 0
        self._num_arrivals = 0

    def add_request(self, request: NewRequest) -> None:
        """Queues the request; one that can't be served is answered by an event that names the value and the limit."""
        error = refusal(request, self.config)
        if request.key in self._life.requests:
            error = f"request id {request.request_id!r} of client {request.client_id!r} is already in use"
        if error is not None:
            self._life.num_finished["error"] += 1
            self._life.outbox.refuse(request.client_id, request.request_id, error)
            return
        self._life.accept(make_request(request, self._num_arrivals, self.config))
        self._num_arrivals += 1

    def abort(self, client_id: str, request_id: str) -> None:
        """Ends the request with an event "abort"; unknown and finished ones are ignored."""
        request = self._life.requests.get((client_id, request_id))
        if request is not None:
            self._abort(request)

    def abort_client(self, client_id: str) -> None:
        """Ends all requests of a client that is gone, and forgets its finished ones."""
        for request in [r for r in self._life.requests.values() if r.client_id == client_id]:
            self._abort(request)
        self._life.outbox.forget_client(client_id)

    def schedule(self) -> StepPlan | None:
        """The next plan; None when nothing can run now, or when `max_unretired_plans` results are owed."""
        self._life.first_planned_s.clear()
        if len(self._in_flight) >= self.config.max_unretired_plans:
            return None
        draft = self._assembler.draft(self._next_step)
        while not draft.num_rows and not self._in_flight and self._assembler.unblock():
            draft = self._assembler.draft(self._next_step)
        if not draft.num_rows:
            return None
        plan, flight = self._assembler.publish(draft)
        self._in_flight.append(flight)
        self._next_step += 1
        return plan

    def update(self, result: StepResult) -> None:
        """Takes the result of the oldest plan in flight; one of another epoch is ignored."""
        if result.epoch != self.config.epoch:
            return
        expected = self._in_flight[0].step if self._in_flight else None
        assert result.step == expected, f"the result of step {result.step} came, {expected} was expected"
        retire(self._life, self._in_flight.popleft(), result)

    def take_events(self) -> list[TokenEvent]:
        """The events since the last call, in order."""
        return self._life.outbox.take()

    def fail_all(self, message: str) -> None:
        """Answers every unfinished request with an error; results still in flight are ignored as they come."""
        for request in list(self._life.requests.values()):
            request.error = message
            self._life.finish(request, "error")
            self._tell_end(request)

    def catch_up(self, client_id: str, request_id: str, start: int) -> TokenEvent | None:
        """One event with all from output token `start` on, the end included, for a client whose queue was full.

        None when there is nothing from `start` on, or the request is unknown. To be called when all events are taken,
        as those would repeat what this one tells. A finished request is known until `forget`; see `outbox` for the
        bound that holds without it.
        """
        key = (client_id, request_id)
        request = self._life.requests.get(key) or self._life.outbox.finished(key)
        if request is None or (start >= request.num_output and request.finish_reason is None):
            return None
        return request.event(start)

    def forget(self, client_id: str, request_id: str) -> None:
        """Frees a finished request's log: its final event was delivered."""
        self._life.outbox.forget((client_id, request_id))

    @property
    def num_unretired(self) -> int:
        """Plans whose result has not come."""
        return len(self._in_flight)

    @property
    def num_unfinished(self) -> int:
        """Requests without their final event."""
        return len(self._life.requests)

    @property
    def first_planned_s(self) -> list[float]:
        """The `arrived_s` of the requests that the last `schedule` call planned for the first time."""
        return self._life.first_planned_s

    def stats(self) -> SchedulerStats:
        """The figures of this moment."""
        life = self._life
        return SchedulerStats(
            waiting=len(life.queue),
            running=life.table.num_slots - life.table.num_free,
            prefilling=len(life.prefilling),
            cohort_sizes=life.cohorts.sizes,
            free_blocks=life.pool.num_free,
            cached_blocks=life.pool.num_cached,
            held_blocks=life.pool.num_held,
            reserve=life.reserve.share,
            unretired_plans=len(self._in_flight),
            num_steps=self._next_step,
            num_prompt_tokens=life.num_prompt_tokens,
            num_generated_tokens=life.num_generated_tokens,
            num_finished=dict(life.num_finished),
            num_preemptions=life.num_preemptions,
            num_prefix_query_tokens=life.num_prefix_query_tokens,
            num_prefix_hit_tokens=life.num_prefix_hit_tokens,
        )

    def check(self) -> None:
        """Asserts every invariant; for tests, O(everything)."""
        assert len(self._in_flight) <= self.config.max_unretired_plans
        self._life.check()

    def _abort(self, request: Request) -> None:
        self._life.finish(request, "abort")
        self._tell_end(request)

    def _tell_end(self, request: Request) -> None:
        self._life.outbox.events.append(request.event(request.num_output))


def _check_config(config: SchedulerConfig) -> None:
    for name in _COUNTS:
        if getattr(config, name) < 1:
            raise ConfigError(f"{name} is {getattr(config, name)}, at least 1 is needed")
    if config.max_num_seqs > MAX_SLOTS:
        raise ConfigError(f"max_num_seqs is {config.max_num_seqs}, plans number slots up to {MAX_SLOTS}")
    if not 0 <= config.kv_reserve < 1:
        raise ConfigError(f"kv_reserve is {config.kv_reserve}, it must be at least 0 and below 1")
