"""Where a step's hidden states come from: tokens through the embedding, or a link from the stage before.

Buffers are reused by events: a receive into a buffer waits for the compute that last read it, which also keeps a
receive from being posted more than one step ahead of the compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..scheduler.device import Device, Event, Link
from ..scheduler.plan import Ints
from .decoder import StageModule
from .future_map import FutureMap
from .work import StepWork


class Source(Protocol):
    """Where a step's hidden states come from."""

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the step's receives."""
        ...

    def load(self, work: StepWork) -> Tensor:
        """The hidden states [T, H]; on the compute lane."""
        ...

    def consumed(self, computed: Event) -> None:
        """Told the event after which the step's buffers may be written again."""
        ...


class TokenSource:
    """Stage 0: token ids, known ones from the plan and sampled ones from the FutureMap, through the embedding.

    With one stage there is no link: the sampler writes the FutureMap itself, on the same compute lane.
    """

    def __init__(self, device: Device, module: StageModule, future_map: FutureMap, link: Link | None) -> None:
        self._device = device
        self._module = module
        self._future_map = future_map
        self._link = link

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Receives the tokens that this step's rows were given, and those of every step before."""
        inputs = work.inputs
        if len(inputs.future_rows):
            work.future_offsets = _host_tensor(inputs.query_starts[inputs.future_rows])
            work.future_slots = _host_tensor(inputs.slots[inputs.future_rows])
        if self._link is None:
            return []
        return [self._receive_one(work, returned.slots) for returned in inputs.returns][-1:]

    def _receive_one(self, work: StepWork, slots: Ints) -> Event:
        link = self._link
        assert link is not None
        tokens = torch.empty(len(slots), dtype=torch.int64, device=self._future_map.tokens.device)
        work.returned.append((_host_tensor(slots), tokens))
        return self._device.enqueue(
            "token_receive", lambda: link.receive(tokens), cause="tokens", step=work.inputs.step
        )

    def load(self, work: StepWork) -> Tensor:
        """Writes the returned tokens, gathers, embeds: [T, H]."""
        for slots, tokens in work.returned:
            self._future_map.write(slots, tokens)
        token_ids = work.batch.token_ids
        if work.future_offsets is not None and work.future_slots is not None:
            self._future_map.fill(token_ids, work.future_offsets, work.future_slots)
        return self._module.embed(token_ids)

    def consumed(self, computed: Event) -> None:
        """Token buffers are the step's own."""


def _host_tensor(values: Ints) -> Tensor:
    """For the launcher to put onto the device."""
    return torch.from_numpy(values.astype("int64"))


class LinkSource:
    """A later stage: hidden states from the stage before, into buffers used in turn."""

    def __init__(self, device: Device, link: Link, buffers: Tensor) -> None:
        self._device = device
        self._link = link
        self._buffers = buffers  # [NUM_LINK_BUFFERS, most tokens of a step, H]
        self._consumed: list[Event | None] = [None] * len(buffers)
        self._num_received = 0

    def receive(self, work: StepWork) -> Sequence[Event]:
        """Enqueues the receive behind the compute that last read the buffer."""
        turn = self._num_received % len(self._buffers)
        self._num_received += 1
        buffer = self._buffers[turn, : work.inputs.total_tokens]
        work.incoming = buffer
        reader = self._consumed[turn]
        after = [] if reader is None else [reader]
        received = self._device.enqueue(
            "receive", lambda: self._link.receive(buffer), after, cause="activations", step=work.inputs.step
        )
        return [received]

    def load(self, work: StepWork) -> Tensor:
        """The received hidden states [T, H]."""
        assert work.incoming is not None
        return work.incoming

    def consumed(self, computed: Event) -> None:
        """Frees the newest buffer when `computed` is done."""
        self._consumed[(self._num_received - 1) % len(self._buffers)] = computed
