"""The device Protocol on a CPU: each lane is a thread that runs its work in order.

A gloo receive can't be polled, so waiting for it needs a thread of its own; a lane is that thread. Work that fails
fails everything enqueued after its event, and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from .device import Cause, Event, Lane
from .timeline import Timeline, now_ns


class CpuEvent:
    """Marks the end of a piece of work on a lane thread."""

    __slots__ = ("_done", "_lock", "cause", "error")

    def __init__(self, cause: Cause) -> None:
        self.cause: Cause = cause
        self.error: BaseException | None = None
        self._done = False
        self._lock = threading.Lock()  # held until the work has ended; cheaper than threading.Event
        self._lock.acquire()

    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._done

    def wait(self) -> None:
        """Blocks until the work has ended; raises its error."""
        if not self._done:
            with self._lock:
                pass
        if self.error is not None:
            raise self.error

    def finish(self, error: BaseException | None = None) -> None:
        """Ends the event; called once, by the lane."""
        self.error = error
        self._done = True
        self._lock.release()


_Item = tuple[Callable[[], None], tuple[Event, ...], CpuEvent, int]


class CpuDevice:
    """Lanes as daemon threads, started when first used."""

    is_polled = False

    def __init__(self, timeline: Timeline | None = None, name: str = "stage") -> None:
        self.timeline = timeline or Timeline()
        self._name = name
        self._queues: dict[Lane, SimpleQueue[_Item | None]] = {}
        self._threads: list[threading.Thread] = []

    def enqueue(
        self, lane: Lane, work: Callable[[], None], after: Sequence[Event] = (), *, cause: Cause, step: int
    ) -> CpuEvent:
        """Queues work on the lane's thread; returns at once."""
        event = CpuEvent(cause)
        queue = self._queues.get(lane) or self._open(lane)
        queue.put((work, tuple(after), event, step))
        return event

    def close(self) -> None:
        """Ends the lanes behind their queued work; waits a second for each, since a peer may never answer."""
        for queue in self._queues.values():
            queue.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _open(self, lane: Lane) -> SimpleQueue[_Item | None]:
        queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._queues[lane] = queue
        thread = threading.Thread(target=self._run, args=(lane, queue), name=f"{self._name}-{lane}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return queue

    def _run(self, lane: Lane, queue: SimpleQueue[_Item | None]) -> None:
        while True:
            item = self._next(lane, queue)
            if item is None:
                return
            work, after, event, step = item
            try:
                self._wait_for(lane, step, after)
                start = now_ns()
                work()
                self.timeline.work(lane, step, event.cause, start, now_ns())
            except BaseException as error:  # the lane's top: the error travels with the event
                event.finish(error)
            else:
                event.finish()

    def _next(self, lane: Lane, queue: SimpleQueue[_Item | None]) -> _Item | None:
        if not queue.empty():
            return queue.get()
        start = now_ns()
        item = queue.get()
        if item is not None:
            self.timeline.wait(lane, item[3], "plan", start, now_ns())
        return item

    def _wait_for(self, lane: Lane, step: int, after: Sequence[Event]) -> None:
        for event in after:
            if event.done():
                event.wait()  # raises if it failed
                continue
            start = now_ns()
            event.wait()
            self.timeline.wait(lane, step, event.cause, start, now_ns())
