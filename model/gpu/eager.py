"""Steps launched kernel by kernel, from host tensors that travel in one pinned buffer and one copy.

The buffer on the device is the step's own: it is allocated, read and freed on the compute stream. Decodes find their
block table in a table of full width, since the attention kernel cuts its work by the table's width: the same cut,
and so the same bits, whichever sequences share a step, in and out of a graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..batch import Batch
from ..decoder import StageModule
from ..launch import StepLimits
from ..work import StepWork

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

    def __init__(self, module: StageModule, device: torch.device, limits: StepLimits) -> None:
        self._module = module
        self._device = device
        self._limits = limits
        shape = (limits.max_num_seqs, limits.max_blocks_per_seq)
        self._decode_tables = torch.zeros(shape, dtype=torch.int32, device=device)

    def upload(self, work: StepWork) -> None:
        """One copy for all that the step needs of the host, greedy sampling included."""
        batch, returned = work.batch, work.returned
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
        if batch.all_decode:
            self.widen(batch)
        out: Tensor = self._module(hidden, batch)
        return out

    def widen(self, batch: Batch) -> None:
        """Puts the rows' block table [S, W] into the table of full width."""
        rows, width = batch.block_table.shape
        self._decode_tables[:rows, :width].copy_(batch.block_table)
        batch.block_table = self._decode_tables[:rows]
        batch.max_seq_len = self._limits.max_model_len
