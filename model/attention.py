"""Attention over the paged cache, behind one protocol; the backend is chosen in `make_attention` and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .batch import Batch
from .kv_cache import LayerCache


@dataclass(slots=True, frozen=True)
class AttentionSpec:
    """One layer's attention on one rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None  # tokens seen, the newest included; None: all

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)


class Attention(Protocol):
    """Causal attention of a step's tokens to their own sequences."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, cache: LayerCache, batch: Batch) -> Tensor:
        """Writes k and v to the cache, then attends.

        q [T, heads, head_dim] and k, v [T, kv heads, head_dim] are rotated already; the result is
        [T, heads * head_dim].
        """
        ...


def make_attention(spec: AttentionSpec, device: torch.device | str) -> Attention:
    """The backend for a device."""
    from .attention_torch import TorchAttention

    return TorchAttention(spec)
