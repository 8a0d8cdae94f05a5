"""Gumbel noise drawn by a counter: the same (seed, position, token id) gives the same number anywhere.

Nothing is remembered between draws, so a request draws the same numbers on any device, in any batch, at any number of
stages and after a preemption. Integers are mixed with wrapping 32-bit arithmetic, which CPUs and GPUs do alike; only
the two logarithms at the end may differ between devices, in their last bit.

Sources: SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"; constants of
Vigna's splitmix64.c, public domain) turns seed and position into a 64-bit key; the 32-bit mix of key and token id is
"lowbias32" of C. Wellons' hash-prospector (Unlicense), with one half of the key added before and one half between
its rounds, so that no two positions see permutations of each other's numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

# As signed 32-bit numbers, because torch has no wrapping arithmetic for unsigned ones on every device.
_SPREAD = 0x9E3779B1 - (1 << 32)  # token ids are neighbours; a large odd factor parts them
_ROUND_1 = 0x7FEB352D
_ROUND_2 = 0x846CA68B - (1 << 32)
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 under 1


def noise_keys(seeds: NDArray[np.uint64], positions: NDArray[np.int32]) -> NDArray[np.int32]:
    """A 64-bit key for each (seed, position), as two int32 halves: [N, 2]."""
    state = _splitmix(seeds + _GOLDEN) + positions.astype(np.uint64) * _GOLDEN
    return _splitmix(state).view(np.int32).reshape(-1, 2)


def noise_bits(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Uniform integers [N, K] int32 (all 32 bits), from keys [N, 2] int32 and token ids [K] or [N, K] int32."""
    h = token_ids * _SPREAD + keys[:, :1]
    h ^= (h >> 16) & 0xFFFF  # the mask makes the arithmetic shift a logical one
    h *= _ROUND_1
    h += keys[:, 1:]
    h ^= (h >> 15) & 0x1FFFF
    h *= _ROUND_2
    h ^= (h >> 16) & 0xFFFF
    return h


def gumbel(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard Gumbel noise [N, K] float32: -log(-log(1 - u)), u uniform in (0, 1).

    The small end of u, where a float32 resolves 2**-32, carries the large noise, so that unlikely tokens keep their
    probabilities down to about 1e-10; the other end stops just below 1.
    """
    u = (noise_bits(keys, token_ids) & 0x7FFFFFFF).to(torch.float32)
    u.add_(0.5).mul_(2.0**-31).clamp_(max=_BELOW_ONE)
    return u.neg_().log1p_().neg_().log_().neg_()


def _splitmix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
