"""Attention over the paged cache, behind one protocol; `kernels.make_kernels` chooses who implements it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .batch import Batch
from .kv_cache import LayerCache
from .rope import Rotation


@dataclass(slots=True, frozen=True)
class AttentionSpec:
    """One layer's attention on one rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None  # tokens seen, the newest included; None: all
    q_norm: Tensor | None = None  # [head_dim] weight of a norm over each query head; both norms or neither
    k_norm: Tensor | None = None
    norm_eps: float = 0.0

    @property
    def scale(self) -> float:
        """What scores are multiplied by."""
        return float(self.head_dim**-0.5)


class Attention(Protocol):
    """Causal attention of a step's tokens to their own sequences, with all that lies between two projections."""

    pads_chunks: bool  # reads a mixed step's rows from the device alone: it may be padded, and captured in a graph

    def attend(self, qkv: Tensor, rotation: Rotation, cache: LayerCache, batch: Batch) -> Tensor:
        """Norms and rotates queries and keys, writes keys and values to the cache, attends.

        qkv [T, (heads + 2 * kv heads) * head_dim], heads first; the result is [T, heads * head_dim].
        """
        ...
