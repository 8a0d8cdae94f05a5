"""Takes results in: tokens into the logs, ends, log-probabilities, events.

A result's rows are those of its plan; a row whose slot has another generation by now belongs to somebody who is gone,
and is ignored. A token past a request's end is such a row.
"""

from __future__ import annotations

from dataclasses import replace

from .assemble import Flight
from .lifecycle import Lifecycle
from .messages import TokenEvent
from .plan import Logprobs, StepResult
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
        events = _take_tokens(life, slots, token_ids)
        if result.logprobs:
            _attach_logprobs(life, flight, result.logprobs, slots, events)
        _end_requests(life, slots, events)
        life.outbox.events += events
    if life.preempted:
        life.requeue_drained()
