"""CUDA graphs of whole steps, one for each shape that small steps are padded to; larger ones are launched eagerly.

The head has graphs of its own, by the number of rows that sample. Inputs and outputs lie in buffers that all graphs
share, written and read on the compute stream alone. Everything is captured before the stage is ready.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ..decoder import StageModule
from ..exchange import Exchange
from ..limits import StepLimits
from .buckets import PaddedShape
from .eager import EagerLauncher

log = logging.getLogger(__name__)


class GraphLauncher(EagerLauncher):
    """`Launcher` that replays padded steps."""

    def __init__(
        self, module: StageModule, device: torch.device, limits: StepLimits, scratch_block: int, exchange: Exchange
    ) -> None:
        super().__init__(module, device, limits, scratch_block, exchange)
        self._graphs: dict[PaddedShape, torch.cuda.CUDAGraph] = {}
        self._heads: dict[int, torch.cuda.CUDAGraph] = {}  # by rows
        self._capture_all()

    def _run_padded(self, shape: PaddedShape) -> None:
        self._graphs[shape].replay()

    def _run_greedy(self, rows: int) -> None:
        self._heads[rows].replay()

    @torch.inference_mode()
    def _capture_all(self) -> None:
        """Largest first, so that the smaller ones find its memory in the pool.

        No garbage is collected meanwhile: a graph of an engine that has ended, freed then, would spoil the capture.
        """
        gc.collect()
        gc.disable()
        try:
            self._capture_each()
        finally:
            gc.enable()

    def _capture_each(self) -> None:
        torch.cuda.empty_cache()
        start_s, (free, _) = time.monotonic(), torch.cuda.mem_get_info(self._device)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for shape in self._buckets.shapes():
            self._buffers.clear(shape)
            self._graphs[shape] = _capture(partial(self._step, shape), pool, stream)
            if shape.all_decode and self._samples:
                rows = shape.num_rows
                self._heads[rows] = _capture(partial(self._head, rows), pool, stream)
        torch.cuda.synchronize(self._device)
        taken = free - torch.cuda.mem_get_info(self._device)[0]
        seconds = time.monotonic() - start_s
        count = len(self._graphs) + len(self._heads)
        log.info("%d graphs captured in %.1f s, %d MiB", count, seconds, taken >> 20)


def _capture(work: Callable[[], None], pool: Any, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """A graph of the work, which has run once before: kernels are loaded then, as none may be in a capture."""
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        work()
    return graph
