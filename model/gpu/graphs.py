"""CUDA graphs of the layers for steps of decodes, one for each bucket of rows; other steps are launched eagerly.

A step's rows are padded to the bucket on the host: padding rows write to a block that no sequence has. Inputs and
output lie in buffers that all graphs share, written and read on the compute stream alone. Everything is captured
before the stage is ready.
"""

from __future__ import annotations

import logging
import time

import numpy as np
import torch
from torch import Tensor

from ..batch import Batch
from ..decoder import StageModule
from ..launch import StepLimits
from ..work import StepWork
from .eager import EagerLauncher

log = logging.getLogger(__name__)

MAX_GRAPH_ROWS = 512


def graph_buckets(max_rows: int) -> list[int]:
    """Numbers of rows that are captured: fine steps where a row is dear, coarser ones above."""
    top = min(max_rows, MAX_GRAPH_ROWS)
    buckets = [1, 2, 4, *range(8, 128, 8), *range(128, 256, 16), *range(256, MAX_GRAPH_ROWS + 1, 32)]
    return [*(size for size in buckets if size < top), top]


class GraphLauncher(EagerLauncher):
    """`Launcher` that replays decodes."""

    def __init__(self, module: StageModule, device: torch.device, limits: StepLimits, scratch_block: int) -> None:
        super().__init__(module, device, limits)
        self._scratch_block = scratch_block
        self._buckets = np.array(graph_buckets(limits.max_num_seqs))
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        rows = int(self._buckets[-1])
        self._hidden = torch.zeros(rows, limits.hidden_size, dtype=limits.dtype, device=device)
        self._out = torch.zeros_like(self._hidden)
        self._positions = torch.zeros(rows, dtype=torch.int64, device=device)
        slot = scratch_block * limits.block_size
        self._cache_slots = torch.full((rows,), slot, dtype=torch.int64, device=device)
        self._seq_lens = torch.ones(rows, dtype=torch.int32, device=device)
        self._query_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        self._decode_tables.fill_(scratch_block)
        self._capture_all()

    def upload(self, work: StepWork) -> None:
        """As without graphs; a step of decodes is padded to its bucket first."""
        batch = work.batch
        if batch.all_decode and batch.num_rows <= self._buckets[-1]:
            self._pad(batch, self._bucket(batch.num_rows) - batch.num_rows)
        super().upload(work)

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Replays the step's graph if there is one."""
        if not batch.all_decode or batch.num_rows > self._buckets[-1]:
            return super().forward(hidden, batch)
        bucket, width = len(batch.positions), batch.block_table.shape[1]
        self._hidden[: len(hidden)].copy_(hidden)
        self._positions[:bucket].copy_(batch.positions)
        self._cache_slots[:bucket].copy_(batch.cache_slots)
        self._seq_lens[:bucket].copy_(batch.seq_lens)
        self._decode_tables[:bucket, :width].copy_(batch.block_table)
        self._graphs[bucket].replay()
        return self._out[: len(hidden)]

    def _bucket(self, rows: int) -> int:
        return int(self._buckets[np.searchsorted(self._buckets, rows)])

    def _pad(self, batch: Batch, count: int) -> None:
        if not count:
            return
        slot = self._scratch_block * self._limits.block_size
        batch.positions = torch.cat((batch.positions, batch.positions.new_zeros(count)))
        batch.cache_slots = torch.cat((batch.cache_slots, batch.cache_slots.new_full((count,), slot)))
        batch.seq_lens = torch.cat((batch.seq_lens, batch.seq_lens.new_ones(count)))
        padding = batch.block_table.new_full((count, batch.block_table.shape[1]), self._scratch_block)
        batch.block_table = torch.cat((batch.block_table, padding))

    def _static_batch(self, rows: int) -> Batch:
        return Batch(
            num_tokens=rows,
            num_rows=rows,
            max_seq_len=self._limits.max_model_len,
            all_decode=True,
            token_ids=self._positions[:rows],
            positions=self._positions[:rows],
            cache_slots=self._cache_slots[:rows],
            query_starts=self._query_starts[: rows + 1],
            seq_lens=self._seq_lens[:rows],
            block_table=self._decode_tables[:rows],
            host_query_starts=np.arange(rows + 1, dtype=np.int32),
            host_seq_lens=np.ones(rows, np.int32),
        )

    @torch.inference_mode()
    def _capture_all(self) -> None:
        """Largest first, so that the smaller ones find its memory in the pool."""
        torch.cuda.empty_cache()
        start_s, (free, _) = time.monotonic(), torch.cuda.mem_get_info(self._device)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for rows in reversed(self._buckets.tolist()):
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                self._hidden.zero_()
                self._module(self._hidden[:rows], self._static_batch(rows))  # kernels load now: none may in a capture
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._out[:rows].copy_(self._module(self._hidden[:rows], self._static_batch(rows)))
            self._graphs[rows] = graph
        torch.cuda.synchronize(self._device)
        taken = free - torch.cuda.mem_get_info(self._device)[0]
        seconds = time.monotonic() - start_s
        log.info("%d graphs captured in %.1f s, %d MiB", len(self._graphs), seconds, taken >> 20)
