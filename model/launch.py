"""How a step gets from the host through the layers; the device's way is chosen where a stage is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from .batch import Batch

if TYPE_CHECKING:
    from .decoder import StageModule
    from .exchange import Exchange
    from .work import StepWork


class Launcher(Protocol):
    """A step's way: all but `prepare` are called on the compute lane, enqueue, and never wait."""

    def prepare(self, work: StepWork) -> None:
        """The host's part, before the mirror applies the next plan."""
        ...

    def run(self, work: StepWork) -> None:
        """The stage's layers, from tokens or the incoming hidden states to `work.hidden` and the outgoing ones."""
        ...

    def rows(self, work: StepWork) -> Tensor:
        """On the last stage: the hidden states [R, H] of the rows that sample."""
        ...

    def greedy(self, work: StepWork) -> bool:
        """On the last stage: the likeliest token [R] of the rows that sample to `work.tokens`, and fed back.

        False where the launcher has no way of its own for so many.
        """
        ...

    def feed_back(self, work: StepWork, token_ids: Tensor) -> None:
        """With one stage: the tokens [R] sampled into the FutureMap."""
        ...


class DirectLauncher:
    """On a CPU: the work's tensors are where they must be."""

    def __init__(self, module: StageModule, exchange: Exchange) -> None:
        self._module = module
        self._future_map = exchange.future_map

    def prepare(self, work: StepWork) -> None:
        """The step's arrays as tensors."""
        work.batch = Batch.from_step(work.inputs)

    def run(self, work: StepWork) -> None:
        """Embeds or takes over, runs the layers, hands on."""
        assert work.batch is not None
        work.hidden = self._module(self._enter(work, work.batch), work.batch)
        if work.outgoing is not None:
            work.outgoing.buffer.copy_(work.hidden)

    def _enter(self, work: StepWork, batch: Batch) -> Tensor:
        if self._future_map is None:
            assert work.incoming is not None
            return work.incoming.buffer
        for slots, place in work.returned:
            self._future_map.write(torch.from_numpy(slots), place.buffer)
        return self._module.embed(self._future_map.resolve(batch.token_ids))

    def rows(self, work: StepWork) -> Tensor:
        """Gathered."""
        assert work.hidden is not None
        return work.hidden[torch.from_numpy(work.inputs.sample_offsets)]

    def greedy(self, work: StepWork) -> bool:
        """No way of its own."""
        return False

    def feed_back(self, work: StepWork, token_ids: Tensor) -> None:
        """Written by slot."""
        if self._future_map is not None:
            self._future_map.write(torch.from_numpy(work.inputs.sample_slots), token_ids)
