"""Attention over the paged cache: steps of decodes by a kernel of ours, others by FlashAttention.

That is version 3 on Hopper, 2 elsewhere, found at run time: `vllm.vllm_flash_attn` (vLLM's wheel) or `vllm_flash_attn`
(standalone). Torch takes its place where neither is at hand.
"""

from __future__ import annotations

import logging
from functools import cache, partial
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from ..attention import Attention, AttentionSpec
from ..attention_torch import TorchAttention
from ..batch import Batch
from ..kv_cache import LayerCache
from ..rope import Rotation
from .decode_attention import MOST_PARTS, cutting, decode_attention
from .fused import rotate_and_store

log = logging.getLogger(__name__)

_MODULES = ("vllm.vllm_flash_attn", "vllm_flash_attn")
_MAX_HEAD_DIM = 256


class FlashKernel(Protocol):
    """`flash_attn_varlen_func` with the version filled in."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor: ...


@cache
def find_flash_attention() -> FlashKernel | None:
    """The best kernel of this machine; None, after one warning, where there is none."""
    versions = (3, 2) if torch.cuda.get_device_capability()[0] == 9 else (2,)
    for name in _MODULES:
        try:
            interface = import_module(f"{name}.flash_attn_interface")
        except (ImportError, OSError):
            continue
        for version in versions:
            if getattr(interface, f"FA{version}_AVAILABLE", False):
                log.info("attention by FlashAttention %d of %s", version, name)
                return partial(interface.flash_attn_varlen_func, fa_version=version)
    log.warning("no FlashAttention is installed (vllm_flash_attn, or vllm's): torch attends to prompts, slowly")
    return None


class FlashAttention:
    """`Attention`: one fused kernel for what comes before, and FlashAttention."""

    pads_chunks = True

    def __init__(self, spec: AttentionSpec, kernel: FlashKernel) -> None:
        self.spec = spec
        self._kernel = kernel
        self._window = [-1, -1] if spec.window is None else [spec.window - 1, 0]

    def attend(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, batch: Batch) -> Tensor:
        queries = rotate_and_store(qkv, rotation, self.spec, cache, batch.cache_slots)
        out = self._kernel(
            queries,
            cache.keys,
            cache.values,
            max_seqlen_q=batch.max_query_len,
            cu_seqlens_q=batch.query_starts,
            max_seqlen_k=batch.max_seq_len,
            seqused_k=batch.seq_lens,
            block_table=batch.block_table,
            softmax_scale=self.spec.scale,
            causal=True,
            window_size=self._window,
        )
        return out.view(len(qkv), -1)


class DecodesApart:
    """`Attention`: steps of decodes by a kernel of ours, others as `others` attends."""

    def __init__(self, spec: AttentionSpec, others: Attention) -> None:
        self.spec = spec
        self.pads_chunks = others.pads_chunks
        self._others = others
        self._num_processors = torch.cuda.get_device_properties().multi_processor_count
        self._arrived = torch.zeros(MOST_PARTS // 2, dtype=torch.int32, device="cuda")

    def attend(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, batch: Batch) -> Tensor:
        if not batch.all_decode:
            return self._others.attend(qkv, rotation, cache, batch)
        cuts, tiling = cutting(batch.num_rows, self.spec.num_kv_heads, batch.max_seq_len, self._num_processors)
        return decode_attention(qkv, rotation, self.spec, cache, batch, self._arrived, cuts, tiling)


def make_attention(dtype: torch.dtype, spec: AttentionSpec) -> Attention:
    """The fastest at hand where it serves the type and the head's size, else torch."""
    if dtype not in (torch.bfloat16, torch.float16):
        return TorchAttention(spec)
    if spec.head_dim > _MAX_HEAD_DIM or spec.head_dim % 8:
        return _torch_attention(spec)
    kernel = find_flash_attention()
    return DecodesApart(spec, _torch_attention(spec) if kernel is None else FlashAttention(spec, kernel))


def _torch_attention(spec: AttentionSpec) -> Attention:
    """Torch's, for the types that its own FlashAttention takes."""
    from torch.nn.attention.bias import causal_lower_right  # it loads torch's compiler, which takes two seconds

    return TorchAttention(spec, causal_lower_right)
