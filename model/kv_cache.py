"""The paged cache of keys and values that a rank holds for its layers.

A block is `block_size` consecutive tokens of one sequence, in every layer at the same id. Which block is whose, the
scheduler decides; nothing here counts references.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(slots=True, frozen=True)
class LayerCache:
    """One layer's keys and values, by block, and the same memory by cache slot (block id * block size + offset)."""

    keys: Tensor  # [blocks, block_size, kv heads, head_dim]
    values: Tensor  # likewise
    flat_keys: Tensor  # [blocks * block_size, kv heads, head_dim]
    flat_values: Tensor  # likewise


class KVCache:
    """The cache of one rank. It starts as zeros, so that a masked read of an unused slot is harmless.

    Raises ConfigError where the device hasn't the memory.
    """

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        block_size: int,
        num_kv_heads_per_rank: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_layers = num_layers
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (num_layers, 2, num_blocks, block_size, num_kv_heads_per_rank, head_dim)
        says_no = RuntimeError if torch.device(device).type == "cpu" else torch.OutOfMemoryError
        try:
            self._data = torch.zeros(shape, dtype=dtype, device=device)
        except says_no:
            size = prod(shape) * dtype.itemsize / (1 << 30)
            raise ConfigError(
                f"{num_blocks} blocks of KV cache take {size:.1f} GiB on a rank, more than it can have; "
                "lower num_kv_blocks or kv_cache_memory_bytes"
            ) from None

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return self._data.nbytes

    def layer(self, index: int) -> LayerCache:
        """The cache of the rank's `index`-th layer."""
        keys, values = self._data[index]
        return LayerCache(keys, values, keys.flatten(0, 1), values.flatten(0, 1))


def bytes_per_block(
    num_layers: int, block_size: int, num_kv_heads_per_rank: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Memory of one block across a rank's layers."""
    return num_layers * 2 * block_size * num_kv_heads_per_rank * head_dim * dtype.itemsize
