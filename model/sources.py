"""Where a step's inputs come from: tokens that the last stage sampled, or hidden states of the stage before.

Buffers are reused by events: a receive into a buffer waits for the compute that last read it, which also keeps a
receive from being posted more than one step ahead of the compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..scheduler.device import Device, Event, Link
from .ring import Ring
from .work import StepWork


class Source(Protocol):
    """Where a step's inputs come from."""

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the step's receives; what its compute must wait for."""
        ...

    def consumed(self, work: StepWork, computed: Event) -> None:
        """Told the event after which the step's buffers may be written again."""
        ...


class TokenSource:
    """Stage 0 of several: the tokens that this step's rows were given, and those of every step before."""

    def __init__(self, device: Device, link: Link, messages: Ring) -> None:
        self._device = device
        self._link = link
        self._messages = messages

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the messages that are due, in order."""
        last: list[Event] = []
        for returned in work.inputs.returns:
            place, free = self._messages.take(len(returned.slots))
            work.returned.append((returned.slots, place))
            last = [
                self._device.enqueue(
                    "token_receive",
                    lambda tokens=place.buffer: self._link.receive(tokens),  # type: ignore[misc]
                    free,
                    cause="tokens",
                    step=work.inputs.step,
                )
            ]
        return last

    def consumed(self, work: StepWork, computed: Event) -> None:
        """Frees the step's messages."""
        for _, place in work.returned:
            self._messages.used(place, computed)


class NoSource:
    """The only stage: the sampler writes the FutureMap itself, on the same compute lane."""

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Nothing comes from elsewhere."""
        return ()

    def consumed(self, work: StepWork, computed: Event) -> None:
        """Nothing was lent."""


class LinkSource:
    """A later stage: hidden states from the stage before."""

    def __init__(self, device: Device, link: Link, buffers: Ring) -> None:
        self._device = device
        self._link = link
        self._buffers = buffers

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the receive behind the compute that last read the buffer."""
        work.incoming, free = self._buffers.take(work.inputs.total_tokens)
        buffer = work.incoming.buffer
        received = self._device.enqueue(
            "receive", lambda: self._link.receive(buffer), free, cause="activations", step=work.inputs.step
        )
        return [received]

    def consumed(self, work: StepWork, computed: Event) -> None:
        """Frees the step's buffer."""
        assert work.incoming is not None
        self._buffers.used(work.incoming, computed)
