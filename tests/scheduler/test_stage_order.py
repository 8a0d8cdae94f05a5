"""Contract 1: a pipeline whose GPUs run their work one piece at a time, in the order of enqueueing, never deadlocks."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.scheduler.mirror import Mirror
from penstock.scheduler.plan import Registration, StepPlan, ints

from .pipelines import Operation, RecordingDevice, fake_ranks


def plans_of(num_steps: int, cadence: int) -> list[StepPlan]:
    """Decode steps of `cadence` sequences in turn: each step needs the tokens of the step `cadence` before."""
    plans = []
    for step in range(num_steps):
        slot = step % cadence
        plan = StepPlan(step=step, slots=ints([slot]), num_tokens=ints([1]))
        if step < cadence:
            plan.registrations.append(Registration(slot, 0, 0, 1, ints([5])))
            plan.block_slots, plan.block_ids = ints([slot]), ints([slot])
        plans.append(plan)
    return plans


def enqueued_by_the_stage_scheduler(num_stages: int, plans: list[StepPlan]) -> list[list[list[Operation]]]:
    """What each stage enqueues for each plan, from the real stage scheduler."""
    devices = [RecordingDevice() for _ in range(num_stages)]
    ranks = fake_ranks(devices, lambda: Mirror(16, 4, 64), 0.0, lambda r: None, raise_it)
    pieces: list[list[list[Operation]]] = [[] for _ in devices]
    for plan in plans:
        for device, rank, mine in zip(devices, ranks, pieces, strict=True):
            before = len(device.operations)
            rank.submit(plan)
            mine.append(device.operations[before:])
    for rank in ranks:
        rank.close()
    return pieces


def raise_it(error: BaseException) -> None:
    raise error


def receives_first(pieces: list[list[Operation]], depth: int) -> list[list[Operation]]:
    """The broken order: the receives of step t + depth stand before compute(t)."""

    def split(piece: list[Operation]) -> tuple[list[Operation], list[Operation]]:
        return [o for o in piece if "receive" in o.kind], [o for o in piece if "receive" not in o.kind]

    receives, others = zip(*map(split, pieces), strict=True)
    order = [[o for r in receives[: depth + 1] for o in r] + others[0]]
    for t in range(1, len(pieces)):
        order.append((receives[t + depth] if t + depth < len(pieces) else []) + others[t])
    return order


def run_one_at_a_time(stages: list[list[list[Operation]]], unretired: int, rng: random.Random) -> int:
    """Runs the stages' operations, each stage one at a time and in order; returns how many steps retired.

    Activations are handed over by rendezvous, tokens without the receiver. Plans arrive at each stage at random times,
    in order, at most `unretired` ahead of the last stage's retired steps.
    """
    last, num_steps = len(stages) - 1, len(stages[0])
    arrived = [0] * len(stages)
    queues: list[list[Operation]] = [[] for _ in stages]
    tokens_sent: set[int] = set()
    retired = 0
    while retired < num_steps:
        moves = []
        for i, queue in enumerate(queues):
            if arrived[i] < min(num_steps, retired + unretired):
                moves.append(("arrive", i))
            if queue and can_run(i, queue[0], queues, tokens_sent):
                moves.append(("run", i))
        if not moves:
            return retired
        kind, i = rng.choice(moves)
        if kind == "arrive":
            queues[i] += stages[i][arrived[i]]
            arrived[i] += 1
            continue
        operation = queues[i].pop(0)
        if operation.kind == "send":
            queues[i + 1].pop(0)  # the receive that it met
        if operation.kind == "token_send":
            tokens_sent.add(operation.step)
        if i == last and not any(o.step == operation.step and "receive" not in o.kind for o in queues[i]):
            retired = max(retired, operation.step + 1) if operation.kind != "receive" else retired
    return retired


def can_run(i: int, operation: Operation, queues: list[list[Operation]], tokens_sent: set[int]) -> bool:
    if operation.kind == "receive":
        return False  # it ends when the sender's turn meets it
    if operation.kind == "send":
        return queues[i + 1][:1] == [Operation("receive", operation.step)]
    if operation.kind == "token_receive":
        return operation.step in tokens_sent
    return True


@settings(max_examples=60, deadline=None)
@given(num_stages=st.integers(1, 8), cadence=st.integers(1, 10), extra=st.integers(1, 2), seed=st.integers(0, 2**32))
def test_compute_send_receive_never_deadlocks(num_stages: int, cadence: int, extra: int, seed: int) -> None:
    plans = plans_of(24, cadence)
    pieces = enqueued_by_the_stage_scheduler(num_stages, plans)
    unretired = 2 if num_stages == 1 else num_stages + extra
    assert run_one_at_a_time(pieces, unretired, random.Random(seed)) == len(plans)


@pytest.mark.parametrize("num_stages", [2, 3, 4, 8])
@pytest.mark.parametrize("cadence", [1, 2, 4, 8])
@pytest.mark.parametrize("depth", [1, 2])
def test_receives_before_the_compute_deadlock_when_they_reach_as_far_as_the_token(
    num_stages: int, cadence: int, depth: int
) -> None:
    plans = plans_of(40, cadence)
    first, *later = enqueued_by_the_stage_scheduler(num_stages, plans)
    activations_early = [first] + [receives_first(p, depth) for p in later]
    tokens_early_too = [receives_first(first, depth), *activations_early[1:]]
    for pieces, shifted in ((activations_early, num_stages - 1), (tokens_early_too, num_stages)):
        retired = run_one_at_a_time(pieces, 10**6, random.Random(1))
        assert (retired < len(plans)) == (shifted * depth >= cadence)


def test_every_rank_enqueues_receive_compute_send_in_plan_order() -> None:
    pieces = enqueued_by_the_stage_scheduler(3, plans_of(6, 3))
    kinds = [[o.kind for piece in stage for o in piece] for stage in pieces]
    assert kinds[0] == ["compute", "send"] * 3 + ["token_receive", "compute", "send"] * 3
    assert kinds[1] == ["receive", "compute", "send"] * 6
    assert kinds[2] == ["receive", "compute", "token_send"] * 6
    assert np.all(np.diff([o.step for piece in pieces[1] for o in piece]) >= 0)
