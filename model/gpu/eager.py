"""Steps launched kernel by kernel, from host tensors that travel in one pinned buffer and one copy.

The buffer on the device is the step's own: it is allocated, read and freed on the compute stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import Batch
from ..decoder import StageModule
from ..launch import StepLimits
from ..work import StepWork
from .buckets import Buckets, StepBuffers, StepShape, pad

_ALIGNMENT = 16  # bytes


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Host tensors as one copy to the device; enqueued on the current stream, never waits."""
    places, size = [], 0
    for tensor in tensors:
        places.append(size)
        size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    pinned = torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for place, tensor in zip(places, tensors, strict=True):
        if tensor.numel():
            pinned[place : place + tensor.nbytes].view(tensor.dtype).copy_(tensor.reshape(-1))
    there = pinned.to(device, non_blocking=True)
    return [
        there[place : place + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for place, tensor in zip(places, tensors, strict=True)
    ]


class EagerLauncher:
    """`Launcher` without graphs."""

    def __init__(self, module: StageModule, device: torch.device, limits: StepLimits, scratch_block: int) -> None:
        """`scratch_block` is a block of the cache that no sequence has."""
        self._module = module
        self._device = device
        self._limits = limits
        self._scratch_block = scratch_block
        self._buckets = Buckets(limits, mixed=module.pads_chunks)
        self._buffers = StepBuffers(limits, scratch_block, device)

    def upload(self, work: StepWork) -> None:
        """One copy for all that the step needs of the host, greedy sampling included."""
        batch, returned = work.batch, work.returned
        shape = self._buckets.shape_of(batch)
        if shape is not None:
            pad(batch, shape, self._scratch_block, self._limits.block_size)
        names = ("future_offsets", "future_slots", "sample_offsets", "sample_slots")
        given = [(name, tensor) for name in names if (tensor := getattr(work, name)) is not None]
        tensors = [batch.token_ids, batch.positions, batch.cache_slots, batch.query_starts, batch.seq_lens]
        tensors += [batch.block_table, *(tensor for _, tensor in given), *(slots for slots, _ in returned)]
        moved = iter(to_device(tensors, self._device))
        batch.token_ids, batch.positions, batch.cache_slots = next(moved), next(moved), next(moved)
        batch.query_starts, batch.seq_lens, batch.block_table = next(moved), next(moved), next(moved)
        for name, _ in given:
            setattr(work, name, next(moved))
        work.returned = [(next(moved), tokens) for _, tokens in returned]

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Launches the layers."""
        shape = self._buckets.shape_of(batch)
        if shape is None:
            out: Tensor = self._module(hidden, batch)
            return out
        self._buffers.load(hidden, batch)
        return self._launch(shape)[: len(hidden)]

    def _launch(self, shape: StepShape) -> Tensor:
        """The layers over the buffers; the result [T of the shape, H]."""
        out: Tensor = self._module(self._buffers.hidden[: shape.num_tokens], self._buffers.batch(shape))
        return out
