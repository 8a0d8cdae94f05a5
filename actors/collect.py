"""The synchronous way to wait for answers: submit, take events off a queue, hand out what has moved."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from queue import SimpleQueue

from .answer import Answer
from .frontdesk import Arrival, Frontdesk

MAX_OPEN = 4096  # answers; the queue to the engine is bounded, and more than this never helps it


def collect(desk: Frontdesk, answers: Iterable[Answer], max_open: int = MAX_OPEN) -> Generator[Answer]:
    """Submits the answers' requests and yields an answer whenever events have reached it, until all are finished.

    At most `max_open` run at once, and only so many are taken from `answers` ahead. Whoever stops iterating, by an
    exception too, aborts what still runs.
    """
    inbox: SimpleQueue[Arrival] = SimpleQueue()
    running: dict[str, Answer] = {}
    waiting = iter(answers)
    try:
        while True:
            while len(running) < max_open:
                if (answer := next(waiting, None)) is None:
                    break
                if answer.finished:
                    yield answer
                else:
                    running[answer.request_id] = answer
                    desk.submit(answer, inbox.put)
            if not running:
                return
            for answer in _moved(desk, inbox):
                if answer.request_id in running:
                    if answer.finished:
                        del running[answer.request_id]
                    yield answer
    finally:
        desk.abort(list(running.values()))


def _moved(desk: Frontdesk, inbox: SimpleQueue[Arrival]) -> list[Answer]:
    """Waits for an event and takes all that are there; their answers, each once, in the order of their first event."""
    arrivals = [inbox.get(), *(inbox.get_nowait() for _ in range(inbox.qsize()))]
    moved = {arrival.answer.request_id: arrival.answer for arrival in arrivals}
    for arrival in arrivals:
        desk.accept(arrival)
    return list(moved.values())
