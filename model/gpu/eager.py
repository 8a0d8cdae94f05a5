"""Steps launched kernel by kernel, from host arrays that travel in one pinned buffer and one copy."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..batch import Batch
from ..decoder import StageModule
from ..exchange import Exchange
from ..limits import StepLimits
from ..sampler import largest_of
from ..work import StepWork
from .buckets import Buckets, PaddedShape
from .columns import Places
from .step_buffers import StepBuffers


class StepEnds(Protocol):
    """See `ends.Ends`."""

    def take_in(self) -> None: ...

    def gather(self, num_rows: int, num_tokens: int) -> None: ...

    def hand_on(self, hidden: Tensor) -> None: ...

    def feed_back(self, token_ids: Tensor) -> None: ...

    def keep(self, token_ids: Tensor) -> None: ...


class EagerLauncher:
    """`Launcher` without graphs."""

    def __init__(
        self, module: StageModule, device: torch.device, limits: StepLimits, scratch_block: int, exchange: Exchange
    ) -> None:
        """`scratch_block` is a block of the cache that no sequence has."""
        self._module = module
        self._device = device
        self._exchange = exchange
        self._embeds, self._samples = module.embed_tokens is not None, module.lm_head is not None
        self._buckets = Buckets(limits, mixed=module.pads_chunks)
        self._buffers = StepBuffers(module, limits, scratch_block, exchange, device)
        self._ends, self._whole_ends = (self._make_ends(self._buffers.places(padded)) for padded in (True, False))
        self._largest = largest_of(device)
        self._out = torch.zeros_like(self._buffers.hidden if self._samples else self._buffers.hidden[:0])

    def _make_ends(self, places: Places) -> StepEnds:
        from .ends import Ends  # Triton is only where GPUs are

        takes_tokens = self._exchange.returned is not None
        return Ends(places, self._buffers.limits.block_size, self._embeds, takes_tokens)

    def prepare(self, work: StepWork) -> None:
        """Nothing: the mirror's arrays are the step's own."""

    def run(self, work: StepWork) -> None:
        """One copy for all that the step needs of the host, greedy sampling included; then the layers."""
        shape = self._buckets.shape_of(work.inputs)
        self._buffers.put(work, shape)
        if shape is None:
            self._run_whole(work)
            return
        self._run_padded(shape)
        if self._samples:
            work.hidden = self._out[: work.inputs.total_tokens]

    def rows(self, work: StepWork) -> Tensor:
        """Gathered behind the layers."""
        return self._buffers.sampled[: len(work.inputs.sample_rows)]

    def greedy(self, work: StepWork) -> bool:
        """See `Launcher`; the rows are padded as those of decodes are."""
        rows = self._buckets.rows_for(len(work.inputs.sample_rows))
        if rows is None or self._exchange.sampled is None:
            return False
        self._run_greedy(rows)
        return True

    def feed_back(self, work: StepWork, token_ids: Tensor) -> None:
        """Written by slot, with one stage."""
        if self._embeds and self._samples:
            self._ends.feed_back(token_ids)

    def _run_padded(self, shape: PaddedShape) -> None:
        self._step(shape)

    def _run_greedy(self, rows: int) -> None:
        self._head(rows)

    def _step(self, shape: PaddedShape) -> None:
        """A padded step, from where inputs arrive to where outputs leave."""
        tokens, buffers = shape.num_tokens, self._buffers
        self._ends.take_in()
        self._ends.gather(shape.num_rows, tokens)
        batch = buffers.batch(shape)
        hidden = self._module.embed(batch.token_ids) if self._embeds else buffers.hidden[:tokens]
        out: Tensor = self._module(hidden, batch)
        if self._samples:
            self._out[:tokens].copy_(out)
            self._gather_samples(out, shape.num_rows)
        else:
            self._ends.hand_on(out)

    def _head(self, rows: int) -> None:
        """The likeliest token of so many rows."""
        self._ends.keep(self._module.likeliest(self._buffers.sampled[:rows], self._largest))

    def _run_whole(self, work: StepWork) -> None:
        """A step in its own shape."""
        batch = self._buffers.whole(work.inputs)
        self._whole_ends.take_in()
        self._whole_ends.gather(batch.num_rows, batch.num_tokens if self._embeds else 0)
        out: Tensor = self._module(self._enter(work, batch), batch)
        if self._samples:
            self._gather_samples(out, len(work.inputs.sample_rows))
            work.hidden = out
        elif work.outgoing is not None:
            work.outgoing.buffer.copy_(out)

    def _enter(self, work: StepWork, batch: Batch) -> Tensor:
        if self._embeds:
            return self._module.embed(batch.token_ids)
        if work.incoming is not None:
            return work.incoming.buffer
        assert self._exchange.incoming is not None  # a trial: whatever lies there
        return self._exchange.incoming.buffers[0, : batch.num_tokens]

    def _gather_samples(self, hidden: Tensor, count: int) -> None:
        offsets, out = self._buffers.sample_offsets(count), self._buffers.sampled[:count]
        torch.index_select(hidden, 0, offsets, out=out)
