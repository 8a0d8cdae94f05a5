"""The noise is a pure function of (seed, position, token id), the same integers anywhere, and looks random."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from penstock.model.noise import gumbel, noise_bits, noise_keys

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def keys_for(seeds: list[int], positions: list[int]) -> Tensor:
    return torch.from_numpy(noise_keys(np.array(seeds, np.uint64), np.array(positions, np.int32)))


def uniforms(seeds: list[int], positions: list[int], num_tokens: int) -> np.ndarray:
    bits = noise_bits(keys_for(seeds, positions), torch.arange(num_tokens, dtype=torch.int32))
    return (bits.numpy().view(np.uint32) + 0.5) / 2.0**32


def splitmix(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def plain_bits(seed: int, position: int, token: int) -> int:
    key = splitmix(splitmix(seed + GOLDEN & M64) + position * GOLDEN & M64)
    h = token * 0x9E3779B1 + (key & M32) & M32
    h = (h ^ h >> 16) * 0x7FEB352D & M32
    h = h + (key >> 32) & M32
    h = (h ^ h >> 15) * 0x846CA68B & M32
    return h ^ h >> 16


def test_the_integers_are_those_of_unsigned_arithmetic_written_plainly() -> None:
    seeds, positions, tokens = [0, 1, 2**63, M64], [0, 1, 7, 131071], [0, 1, 2, 151935]
    bits = noise_bits(keys_for(seeds, positions), torch.tensor(tokens, dtype=torch.int32))
    for row, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        assert [b & M32 for b in bits[row].tolist()] == [plain_bits(seed, position, token) for token in tokens]


def test_gathered_token_ids_see_the_noise_that_the_whole_vocabulary_sees() -> None:
    keys, ids = keys_for([5, 6], [9, 9]), torch.tensor([[3, 900], [17, 3]], dtype=torch.int32)
    whole = gumbel(keys, torch.arange(1000, dtype=torch.int32))
    assert torch.equal(gumbel(keys, ids), whole.gather(1, ids.long()))


def test_uniforms_fill_every_cell_evenly() -> None:
    counts = np.histogram(uniforms([11] * 100, list(range(100)), 1000), bins=64, range=(0, 1))[0]
    chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
    assert abs(chi_square - 63) < 4 * np.sqrt(2 * 63)


def test_neighbouring_seeds_positions_and_tokens_are_uncorrelated() -> None:
    by_position, by_seed = uniforms([3] * 200, list(range(200)), 500), uniforms(list(range(200)), [3] * 200, 500)
    pairs = [(by_position[1:], by_position[:-1]), (by_seed[1:], by_seed[:-1]), (by_seed[:, 1:], by_seed[:, :-1])]
    for a, b in pairs:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_no_position_is_a_permutation_of_another() -> None:
    rows = [set(row) for row in uniforms([1] * 40, list(range(40)), 4096)]
    shared = [len(a & b) for i, a in enumerate(rows) for b in rows[:i]]
    assert max(shared) < 4  # 2**24 / 2**32 is 0.004 in the mean


def test_gumbel_has_its_mean_and_variance_and_is_finite() -> None:
    g = gumbel(keys_for([1] * 64, list(range(64))), torch.arange(8192, dtype=torch.int32)).double()
    assert torch.isfinite(g).all()
    assert abs(g.mean().item() - 0.5772) < 0.01
    assert abs(g.var().item() - np.pi**2 / 6) < 0.02
