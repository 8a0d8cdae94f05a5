"""Attention in plain torch: the reference, and what serves where nothing faster is at hand.

Rows of one token attend together over gathered blocks; a longer chunk attends by itself.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import AttentionSpec
from .batch import Batch
from .kv_cache import LayerCache
from .rope import Rotation


class TorchAttention:
    """`Attention` by gathers and `scaled_dot_product_attention`."""

    pads_chunks = False

    def __init__(self, spec: AttentionSpec) -> None:
        self.spec = spec

    def attend(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, batch: Batch) -> Tensor:
        spec = self.spec
        sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        q, k, v = torch.split(qkv.view(len(qkv), -1, spec.head_dim), sizes, dim=1)
        q, k = rotation.apply(self._normed(q, spec.q_norm)), rotation.apply(self._normed(k, spec.k_norm))
        cache.flat_keys.index_copy_(0, batch.cache_slots, k)
        cache.flat_values.index_copy_(0, batch.cache_slots, v)
        if batch.all_decode:
            return self._decodes(q, cache, batch, None)
        return self._mixed(q, cache, batch)

    def _normed(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x if weight is None else F.rms_norm(x, weight.shape, weight, self.spec.norm_eps)

    def _mixed(self, q: Tensor, cache: LayerCache, batch: Batch) -> Tensor:
        out = q.new_empty(len(q), q.shape[1] * q.shape[2])
        starts = batch.host_query_starts
        counts = np.diff(starts)
        decodes = np.flatnonzero(counts == 1)
        if len(decodes):
            tokens = torch.from_numpy(starts[decodes].astype(np.int64)).to(q.device)
            out[tokens] = self._decodes(q[tokens], cache, batch, torch.from_numpy(decodes).to(q.device))
        for row in np.flatnonzero(counts > 1):
            start, end = int(starts[row]), int(starts[row + 1])
            out[start:end] = self._chunk(q[start:end], cache, batch, int(row))
        return out

    def _decodes(self, q: Tensor, cache: LayerCache, batch: Batch, rows: Tensor | None) -> Tensor:
        """The rows (None: all) with one query each; q [S, heads, head_dim]."""
        table = batch.block_table if rows is None else batch.block_table[rows]
        k = cache.keys[table].flatten(1, 2)  # [S, W * block_size, kv heads, head_dim]
        v = cache.values[table].flatten(1, 2)
        seq_lens = batch.seq_lens if rows is None else batch.seq_lens[rows]
        mask = self._decode_mask(batch, seq_lens, k.shape[1])
        others = ~mask[:, 0, 0, :, None, None]
        for gathered in (k, v):  # a weight of 0 doesn't keep out another sequence's NaN
            gathered.masked_fill_(others, 0)
        out = self._sdpa(q.unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2), mask)
        return out.flatten(1)

    def _decode_mask(self, batch: Batch, seq_lens: Tensor, width: int) -> Tensor:
        """[S, 1, 1, width] True where a row sees; made once a step."""
        key = ("decode mask", self.spec.window, len(seq_lens))
        if key not in batch.prepared:
            keys = torch.arange(width, device=seq_lens.device)
            ends = seq_lens.unsqueeze(1)
            seen = keys < ends
            if self.spec.window is not None:
                seen &= keys >= ends - self.spec.window
            batch.prepared[key] = seen[:, None, None, :]
        mask: Tensor = batch.prepared[key]
        return mask

    def _chunk(self, q: Tensor, cache: LayerCache, batch: Batch, row: int) -> Tensor:
        """One row's chunk; q [t, heads, head_dim]."""
        length = int(batch.host_seq_lens[row])
        block_size = cache.keys.shape[1]
        table = batch.block_table[row, : -(-length // block_size)]
        k = cache.keys[table].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
        v = cache.values[table].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
        mask = self._chunk_mask(len(q), length, q.device)
        out = self._sdpa(q.transpose(0, 1).unsqueeze(0), k, v, mask)
        return out.squeeze(0).transpose(0, 1).flatten(1)

    def _chunk_mask(self, num_queries: int, length: int, device: torch.device) -> Tensor | None:
        """[t, length] True where a query sees; None when it is plainly causal from the first token."""
        window = self.spec.window
        if num_queries == length and (window is None or window >= length):
            return None
        keys = torch.arange(length, device=device)
        ends = torch.arange(length - num_queries + 1, length + 1, device=device).unsqueeze(1)
        seen = keys < ends
        return seen if window is None else seen & (keys >= ends - window)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        grouped = self.spec.num_heads != self.spec.num_kv_heads
        causal = mask is None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.spec.scale, enable_gqa=grouped
        )
