"""Takes results in: tokens into the logs, ends, log-probabilities, events.

A result's rows are those of its plan; a row whose slot has another generation by now belongs to somebody who is gone,
and is ignored. A token past a request's end is such a row.
"""

from __future__ import annotations

from .assemble import Flight
from .lifecycle import Lifecycle
from .messages import TokenEvent
from .plan import Ints, Logprobs, StepResult
from .request import Request
from .slots import Slots
from .stop import ending


def retire(life: Lifecycle, flight: Flight, result: StepResult) -> None:
    """Applies the result of a plan."""
    table = life.table
    for scored in result.prompt_logprobs:
        _keep_prompt_logprobs(life, flight, scored)
    rows = flight.sample_rows
    slots = flight.slots if rows is None else flight.slots[rows]
    generations = flight.generations if rows is None else flight.generations[rows]
    token_ids = result.token_ids
    assert len(token_ids) == len(slots), f"step {flight.step}: {len(token_ids)} tokens for {len(slots)} rows"
    live = table.generation[slots] == generations
    if not live.all():
        slots, token_ids = slots[live], token_ids[live]
    life.last_retired_step = flight.step
    if len(slots):
        life.num_generated_tokens += len(slots)
        events = _take_tokens(life, slots, token_ids)
        if result.logprobs:
            _attach_logprobs(life, flight, result.logprobs, events)
        _end_requests(life, slots, token_ids, events)
        life.outbox.events += events
    if life.preempted:
        life.requeue_drained()


def _take_tokens(life: Lifecycle, slots: Slots, token_ids: Ints) -> list[TokenEvent]:
    """One known token more for each slot, and the event that says so."""
    table = life.table
    starts = table.num_known[slots]
    table.num_known[slots] = starts + 1
    starts -= table.num_prompt[slots]
    requests, events = table.requests, []
    columns = zip(slots.tolist(), token_ids.tolist(), starts.tolist(), token_ids.reshape(-1, 1), strict=True)
    for slot, token_id, start, token in columns:
        request = requests[slot]
        request.tokens.append(token_id)
        prompt_logprobs = [] if start else list(request.prompt_logprobs)
        event = TokenEvent(
            request.client_id, request.request_id, start, token, [], prompt_logprobs, request.num_cached_tokens
        )
        events.append(event)
    return events


def _end_requests(life: Lifecycle, slots: Slots, token_ids: Ints, events: list[TokenEvent]) -> None:
    """Finishes those whose newest token ends them; one set operation clears a step in which none does."""
    table = life.table
    at_limit = table.num_known[slots] >= table.limit[slots]
    ids = token_ids.tolist()
    if not at_limit.any() and not life.stop_ids.any_in(ids):
        return
    for slot, token_id, limited, event in zip(slots.tolist(), ids, at_limit.tolist(), events, strict=True):
        request = table.holder(slot)
        end = ending(request.stop, token_id, request.num_output, limited)
        if end is not None:
            event.finish_reason, event.stop_reason = end.reason, end.stop_reason
            life.finish(request, end.reason, end.stop_reason)


def _attach_logprobs(life: Lifecycle, flight: Flight, scored: list[Logprobs], events: list[TokenEvent]) -> None:
    by_key = {(event.client_id, event.request_id): event for event in events}
    for logprobs in scored:
        request = _live_request(life, flight, logprobs.row)
        if request is not None:
            request.logprobs.append(logprobs)
            by_key[request.key].logprobs.append(logprobs)


def _keep_prompt_logprobs(life: Lifecycle, flight: Flight, scored: Logprobs) -> None:
    """Keeps the positions that are new: a prompt preempted midway is scored again from its start."""
    request = _live_request(life, flight, scored.row)
    if request is None:
        return
    num_seen = request.num_prompt_scored - scored.start
    assert num_seen >= 0, f"prompt positions {request.num_prompt_scored} to {scored.start} were never scored"
    if num_seen < len(scored.token_ids):
        request.prompt_logprobs.append(_without_first(scored, num_seen))
        request.num_prompt_scored = scored.start + len(scored.token_ids)


def _without_first(scored: Logprobs, count: int) -> Logprobs:
    if not count:
        return scored
    return Logprobs(
        row=scored.row,
        start=scored.start + count,
        token_ids=scored.token_ids[count:],
        values=scored.values[count:],
        ranks=scored.ranks[count:],
        top_ids=scored.top_ids[count:],
        top_values=scored.top_values[count:],
    )


def _live_request(life: Lifecycle, flight: Flight, row: int) -> Request | None:
    slot = int(flight.slots[row])
    return life.table.requests[slot] if life.table.generation[slot] == flight.generations[row] else None
