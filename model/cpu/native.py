"""The layers' work in the compiled library: RMS norms, and attention with all that precedes it in one call."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention import AttentionSpec
from ..batch import Batch
from ..kv_cache import LayerCache
from ..rope import Rotation
from .library import CpuLibrary

MAX_HEAD_DIM = 256
MAX_GROUPED_HEADS = 32
_LANES = 16


class _Layer(ctypes.Structure):
    """`struct layer` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("heads", "kv_heads", "dim", "rotary_dim", "interleaved", "window")),
        *((name, ctypes.c_int32) for name in ("block_size", "padding")),
        *((name, ctypes.c_float) for name in ("eps", "scale")),
        *((name, ctypes.c_void_p) for name in ("keys", "values", "q_norm", "k_norm")),
    )


class _Step(ctypes.Structure):
    """`struct step` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("num_tokens", "num_rows", "table_width", "threads")),
        *((name, ctypes.c_void_p) for name in ("cache_slots", "query_starts", "seq_lens", "block_table")),
        *((name, ctypes.c_void_p) for name in ("cos", "sin")),
    )


@dataclass(slots=True)
class _PreparedStep:
    """A step's struct with what it points to; one for all layers."""

    struct: _Step
    rotation: Rotation  # kept alive, like the batch that holds this
    queries: Tensor  # scratch [T, heads, padded head_dim] float32
    address: int


def _prepare(batch: Batch, rotation: Rotation, spec: AttentionSpec) -> _PreparedStep:
    struct = _Step(
        batch.num_tokens,
        batch.num_rows,
        batch.block_table.shape[1],
        torch.get_num_threads(),
        batch.cache_slots.data_ptr(),
        batch.query_starts.data_ptr(),
        batch.seq_lens.data_ptr(),
        batch.block_table.data_ptr(),
        rotation.cos.data_ptr(),
        rotation.sin.data_ptr(),
    )
    wide = -(-spec.head_dim // _LANES) * _LANES
    queries = torch.empty(batch.num_tokens, spec.num_heads, wide)
    return _PreparedStep(struct, rotation, queries, ctypes.addressof(struct))


class NativeAttention:
    """`Attention` in the compiled library."""

    pads_chunks = False

    def __init__(self, spec: AttentionSpec, library: CpuLibrary, dtype: torch.dtype) -> None:
        self.spec = spec
        self._attend = library.attend(str(dtype).removeprefix("torch."))
        self._cache: LayerCache | None = None
        self._layer = _Layer()
        self._address = ctypes.addressof(self._layer)

    def attend(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, batch: Batch) -> Tensor:
        if cache is not self._cache:
            self._bind(cache, rotation)
        step = batch.prepared.get("native")
        if step is None:
            step = batch.prepared["native"] = _prepare(batch, rotation, self.spec)
        out = qkv.new_empty(qkv.shape[0], self.spec.num_heads * self.spec.head_dim)
        failed = self._attend(self._address, step.address, qkv.data_ptr(), step.queries.data_ptr(), out.data_ptr())
        if failed:
            raise MemoryError(f"no memory for the attention of {batch.num_tokens} tokens")
        return out

    def _bind(self, cache: LayerCache, rotation: Rotation) -> None:
        spec, layer = self.spec, self._layer
        self._cache = cache
        layer.heads, layer.kv_heads, layer.dim = spec.num_heads, spec.num_kv_heads, spec.head_dim
        layer.rotary_dim, layer.interleaved = rotation.rotary_dim, rotation.interleaved
        layer.window, layer.block_size = spec.window or 0, cache.keys.shape[1]
        layer.eps, layer.scale = spec.norm_eps, spec.scale
        layer.keys, layer.values = cache.keys.data_ptr(), cache.values.data_ptr()
        layer.q_norm = None if spec.q_norm is None else spec.q_norm.data_ptr()
        layer.k_norm = None if spec.k_norm is None else spec.k_norm.data_ptr()


class NativeRMSNorm:
    """RMS norm in the compiled library."""

    def __init__(self, library: CpuLibrary, dtype: torch.dtype) -> None:
        self._norm = library.rms_norm(str(dtype).removeprefix("torch."))

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        size = weight.numel()
        rows = x.numel() // size
        self._norm(x.data_ptr(), weight.data_ptr(), out.data_ptr(), rows, size, eps, torch.get_num_threads())
        return out
