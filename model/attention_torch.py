"""Attention in plain torch: the reference, and what serves where nothing faster is at hand.

Rows of one token attend together over gathered blocks, few enough at a time that what is gathered stays small; a longer
chunk attends by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .attention import AttentionSpec
from .batch import Batch
from .kv_cache import LayerCache
from .rope import Rotation

_GATHERED_KEYS = 1 << 14  # at a time


class TorchAttention:
    """`Attention` by gathers and `scaled_dot_product_attention`.

    `lower_right` makes a mask of (queries, keys) that torch's own FlashAttention takes, where that is there.
    """

    pads_chunks = False

    def __init__(self, spec: AttentionSpec, lower_right: Callable[[int, int], Tensor] | None = None) -> None:
        self.spec = spec
        self._lower_right = lower_right

    def attend(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, batch: Batch) -> Tensor:
        spec = self.spec
        sizes = [spec.num_heads, spec.num_kv_heads, spec.num_kv_heads]
        q, k, v = torch.split(qkv.view(len(qkv), -1, spec.head_dim), sizes, dim=1)
        q, k = rotation.apply(self._normed(q, spec.q_norm)), rotation.apply(self._normed(k, spec.k_norm))
        cache.flat_keys.index_copy_(0, batch.cache_slots, k)
        cache.flat_values.index_copy_(0, batch.cache_slots, v)
        if batch.all_decode:
            return self._decodes(q, cache, self._groups(batch, cache, None))
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
            out[tokens] = self._decodes(q[tokens], cache, self._groups(batch, cache, decodes))
        for row in np.flatnonzero(counts > 1):
            start, end = int(starts[row]), int(starts[row + 1])
            out[start:end] = self._chunk(q[start:end], cache, batch, int(row))
        return out

    def _groups(
        self, batch: Batch, cache: LayerCache, rows: NDArray[np.integer[Any]] | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Of the rows (None: all) with one query each, tables [S', W] and what they see [S', 1, 1, W * block_size].

        Made once a step.
        """
        key = ("decodes", self.spec.window)
        if key not in batch.prepared:
            table, ends = batch.block_table, batch.seq_lens.unsqueeze(1)
            if rows is not None:
                chosen = torch.from_numpy(rows).to(table.device)
                table, ends = table[chosen], ends[chosen]
            block_size = cache.keys.shape[1]
            table = table[:, : -(-batch.max_seq_len // block_size)]
            keys = torch.arange(table.shape[1] * block_size, device=ends.device)
            seen = keys < ends
            if self.spec.window is not None:
                seen &= keys >= ends - self.spec.window
            each = max(1, _GATHERED_KEYS // len(keys))
            masks = torch.split(seen[:, None, None, :], each)
            batch.prepared[key] = list(zip(torch.split(table, each), masks, strict=True))
        groups: list[tuple[Tensor, Tensor]] = batch.prepared[key]
        return groups

    def _decodes(self, q: Tensor, cache: LayerCache, groups: list[tuple[Tensor, Tensor]]) -> Tensor:
        """One query a row; q [S, heads, head_dim]."""
        out = torch.empty_like(q)
        first = 0
        for table, seen in groups:
            rows = slice(first, first + len(table))
            k, v = cache.keys[table].flatten(1, 2), cache.values[table].flatten(1, 2)  # [S', keys, kv heads, head_dim]
            others = ~seen[:, 0, 0, :, None, None]
            for gathered in (k, v):  # a weight of 0 doesn't keep out another sequence's NaN
                gathered.masked_fill_(others, 0)
            out[rows] = self._sdpa(q[rows].unsqueeze(2), k.transpose(1, 2), v.transpose(1, 2), seen).squeeze(2)
            first = rows.stop
        return out.flatten(1)

    def _chunk(self, q: Tensor, cache: LayerCache, batch: Batch, row: int) -> Tensor:
        """One row's chunk; q [t, heads, head_dim]."""
        length = int(batch.host_seq_lens[row])
        block_size = cache.keys.shape[1]
        table = batch.block_table[row, : -(-length // block_size)]
        k = cache.keys[table].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
        v = cache.values[table].flatten(0, 1)[:length].transpose(0, 1).unsqueeze(0)
        mask = self._chunk_mask(q, length)
        out = self._sdpa(q.transpose(0, 1).unsqueeze(0), k, v, mask)
        return out.squeeze(0).transpose(0, 1).flatten(1)

    def _chunk_mask(self, q: Tensor, length: int) -> Tensor | None:
        """[t, length] True where a query sees; None when it is plainly causal from the first token."""
        window, num_queries, device = self.spec.window, len(q), q.device
        if window is None or window >= length:
            if num_queries == length:
                return None
            if self._lower_right is not None:
                return self._lower_right(num_queries, length)
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
