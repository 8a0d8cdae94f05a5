"""The seams between a stage's scheduler and what it drives: a device that runs work in lanes, and links to neighbours.

A lane is an in-order queue (a CUDA stream; on a CPU a thread). `enqueue` returns at once; the work runs after the
lane's earlier work and after the events named in `after`. That is all a stage's loop knows of a device, so the same
loop runs on both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

Lane = Literal["compute", "receive", "send", "token_receive", "token_send", "copy"]
Cause = Literal["plan", "activations", "tokens", "send_buffer", "compute", "copy"]


class Event(Protocol):
    """Marks the end of a piece of work."""

    cause: Cause  # what somebody who waits for this event waits for

    def done(self) -> bool:
        """Whether the work has ended (also when it failed). Never blocks."""
        ...

    def wait(self) -> None:
        """Blocks the calling thread until the work has ended; raises what it raised. Never on the step path."""
        ...


class Device(Protocol):
    """Runs work in lanes."""

    is_polled: bool  # whether who launches also asks for ends, over and over; else a thread of its own waits for them

    def enqueue(
        self, lane: Lane, work: Callable[[], None], after: Sequence[Event] = (), *, cause: Cause, step: int
    ) -> Event:
        """Queues `work` behind the lane's earlier work and behind `after`.

        If an event in `after` failed, the work is not run and the returned event fails alike. `cause` names the
        returned event for the timeline, `step` says which step the work belongs to.
        """
        ...

    def close(self) -> None:
        """Ends the lanes after the work that is queued."""
        ...


class Link(Protocol):
    """One direction between two ranks. Tensors arrive in the order of sending; shapes are known to both sides."""

    def send(self, tensor: Any) -> None:
        """Sends the tensor; back when the buffer may be reused (CPU) or when the send is enqueued (GPU)."""
        ...

    def receive(self, buffer: Any) -> None:
        """Receives into the buffer; back when the data is there (CPU) or when the receive is enqueued (GPU)."""
        ...

    def close(self) -> None:
        """Ends the link; a blocked `send` or `receive` raises."""
        ...
