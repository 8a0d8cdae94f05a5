"""CUDA graphs of the layers, one for each shape that small steps are padded to; larger ones are launched eagerly.

Inputs and output lie in buffers that all graphs share, written and read on the compute stream alone. Everything is
captured before the stage is ready.
"""

from __future__ import annotations

import logging
import time

import torch
from torch import Tensor

from ..decoder import StageModule
from ..launch import StepLimits
from .buckets import StepShape
from .eager import EagerLauncher

log = logging.getLogger(__name__)


class GraphLauncher(EagerLauncher):
    """`Launcher` that replays padded steps."""

    def __init__(self, module: StageModule, device: torch.device, limits: StepLimits, scratch_block: int) -> None:
        super().__init__(module, device, limits, scratch_block)
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._out = torch.zeros_like(self._buffers.hidden)
        self._capture_all()

    def _launch(self, shape: StepShape) -> Tensor:
        self._graphs[shape].replay()
        return self._out

    @torch.inference_mode()
    def _capture_all(self) -> None:
        """Largest first, so that the smaller ones find its memory in the pool."""
        torch.cuda.empty_cache()
        start_s, (free, _) = time.monotonic(), torch.cuda.mem_get_info(self._device)
        pool = torch.cuda.graph_pool_handle()
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        for shape in self._buckets.shapes():
            stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(stream):
                self._buffers.clear(shape)
                super()._launch(shape)  # kernels load now: none may in a capture
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                self._out[: shape.num_tokens].copy_(super()._launch(shape))
            self._graphs[shape] = graph
        torch.cuda.synchronize(self._device)
        taken = free - torch.cuda.mem_get_info(self._device)[0]
        seconds = time.monotonic() - start_s
        log.info("%d graphs captured in %.1f s, %d MiB", len(self._graphs), seconds, taken >> 20)
