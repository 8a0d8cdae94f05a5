"""The device Protocol on CUDA: each lane is a stream, and work is issued at once, on the calling thread.

Work calls torch; what it launches goes to the lane's stream, behind the events that it waits for. An error in issuing
travels with the event, as on a CPU, and fails what is enqueued after it; an error on the device is raised by the wait.

Memory: a tensor belongs to the lane on whose stream it was made. One that another lane reads must live until its step
has retired, or be marked with `record_stream` there.

The thread that launches also asks for the ends of steps, without sleeping while some are under way: one that slept
comes back to a cold core, where each call takes three to four times as long (LOG.md).

The timeline is device time: events around the work of the compute lane (of every lane where spans are kept), read
once they are over. What lies between two pieces of compute is idle time. Until the host issued the
work it is a wait for the plan, the host's own work on it included; then for the causes of the events waited for; what
then remains is "launch". Work that the device finishes faster than the host launches it counts as busy throughout.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from ...errors import ConfigError
from ...scheduler.device import Cause, Event, Lane
from ...scheduler.timeline import Timeline, now_ns
from .clock import DeviceClock, is_over, timing_event

_OWN_PRIORITY = -1  # of the lanes that move data: their small kernels go first
_MIN_WAIT_NS = 1000
_BLOCK_MULTIPLE = 16  # tokens


class CudaEvent:
    """Marks the end of a piece of work on a stream. Its event of CUDA's is used again when nobody holds this one."""

    __slots__ = ("_device", "_was_running", "cause", "end", "error", "stream")

    def __init__(self, cause: Cause, device: CudaDevice, stream: torch.cuda.Stream) -> None:
        self.cause: Cause = cause
        self.stream = stream
        self.end = device.next_event()
        self.error: BaseException | None = None
        self._device = device
        self._was_running = False  # when somebody asked before

    def done(self) -> bool:
        """Whether the work has ended, or failed to be issued."""
        if self.error is not None or is_over(self.end):
            return True
        self._was_running = True
        return False

    def wait(self) -> None:
        """Blocks until the work has ended; raises its error. Called by who retires steps, soon after its end."""
        if self.error is not None:
            raise self.error
        if not self.done():
            self.end.synchronize()
        self._device.note_ended(self if self._was_running else None)

    def __del__(self) -> None:
        self._device.spare_events.append(self.end)


@dataclass(slots=True)
class _Issued:
    """Work whose times are yet to be read."""

    lane: Lane
    step: int
    requested_ns: int
    start: torch.cuda.Event
    event: CudaEvent
    after: Sequence[Event]


class CudaDevice:
    """Lanes as streams of the current device."""

    is_polled = True

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.timeline = timeline or Timeline()
        self.spare_events: list[torch.cuda.Event] = []
        self._streams: dict[Lane, torch.cuda.Stream] = {}
        self._issued: deque[_Issued] = deque()
        self._outer = torch.cuda.default_stream()  # of the thread that enqueues
        self._clock = DeviceClock()
        self._compute_end_ns = 0

    def enqueue(
        self, lane: Lane, work: Callable[[], None], after: Sequence[Event] = (), *, cause: Cause, step: int
    ) -> CudaEvent:
        """Issues the work on the lane's stream; returns at once."""
        requested_ns = now_ns()
        stream = self._streams.get(lane) or self._open(lane)
        event = CudaEvent(cause, self, stream)
        for each in after:
            assert isinstance(each, CudaEvent), "an event of another device"
            if each.error is not None:
                event.error = each.error
                return event
            if each.stream is not stream:
                stream.wait_event(each.end)
        timed = lane == "compute" or self.timeline.keep_spans
        start = self.next_event() if timed else None
        torch.cuda.set_stream(stream)  # a context manager around this costs a step 0.1 ms
        try:
            if start is not None:
                start.record(stream)
            work()
            event.end.record(stream)
        except BaseException as error:  # the lane's top: the error travels with the event
            event.error = error
            return event
        finally:
            torch.cuda.set_stream(self._outer)
        if start is not None:
            self._issued.append(_Issued(lane, step, requested_ns, start, event, after))
        return event

    def computing(self) -> AbstractContextManager[None]:
        """What is launched within goes to the compute lane's stream, and so does the memory that it takes."""
        return torch.cuda.stream(self._streams.get("compute") or self._open("compute"))

    def next_event(self) -> torch.cuda.Event:
        """One that is used again, or a new one."""
        return self.spare_events.pop() if self.spare_events else timing_event()

    def note_ended(self, event: CudaEvent | None) -> None:
        """Reads the times of all that is over; `event` ended while who calls watched it."""
        if event is not None:
            self._clock.seen(event, now_ns())
        while self._issued and is_over(self._issued[0].event.end):
            self._note(self._issued.popleft())

    def close(self) -> None:
        """Nothing waits here: what peers never answer stays on its stream until the process ends."""

    def _open(self, lane: Lane) -> torch.cuda.Stream:
        stream = torch.cuda.Stream(priority=0 if lane == "compute" else _OWN_PRIORITY)  # type: ignore[no-untyped-call]
        self._streams[lane] = stream
        return stream

    def _note(self, issued: _Issued) -> None:
        start_ns, end_ns = self._clock.ns(issued.start), self._clock.ns(issued.event.end)
        if issued.lane == "compute":
            if self._compute_end_ns:
                self._note_idle(issued, start_ns)
            self._compute_end_ns = end_ns
        self.timeline.work(issued.lane, issued.step, issued.event.cause, start_ns, end_ns)
        self.spare_events.append(issued.start)

    def _note_idle(self, issued: _Issued, start_ns: int) -> None:
        """Cuts the time since the last compute by what the work waited for."""
        ends: list[tuple[int, str]] = [(issued.requested_ns, "plan")]
        earlier = [each for each in issued.after if isinstance(each, CudaEvent) and is_over(each.end)]
        ends += sorted((self._clock.ns(each.end), each.cause) for each in earlier)
        at_ns = self._compute_end_ns
        for until_ns, cause in [*ends, (start_ns, "launch")]:
            until_ns = min(until_ns, start_ns)
            if until_ns - at_ns > _MIN_WAIT_NS:
                self.timeline.wait("compute", issued.step, cause, at_ns, until_ns)
                at_ns = until_ns


def check_cuda(dtype: torch.dtype, block_size: int) -> None:
    """Raises ConfigError where torch finds no GPU that it can use, with torch's own reason, or one without the type.

    Likewise for a block size that the paged kernels don't take: before weights are loaded.
    """
    if block_size % _BLOCK_MULTIPLE:
        raise ConfigError(f"block_size is {block_size}; on a GPU it must be a multiple of {_BLOCK_MULTIPLE}")
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:  # built without CUDA; no GPU, or its driver is too old
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device is 'cuda', but torch finds no usable GPU: {reason}") from None
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name()
        raise ConfigError(f"dtype is 'bfloat16', but {name} doesn't compute in it: choose dtype 'float16'")
