"""The GPU's attention against the plain one: outputs, and what they write to the cache."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from penstock.model.attention import AttentionSpec
from penstock.model.attention_torch import TorchAttention
from penstock.model.batch import Batch
from penstock.model.gpu.attention import DecodesApart, FlashAttention, find_flash_attention
from penstock.model.gpu.decode_attention import MOST_PARTS, cutting
from penstock.model.gpu.trial import step_of
from penstock.model.kv_cache import KVCache
from penstock.model.limits import StepLimits
from penstock.model.rope import Rotation

BLOCK_SIZE, MAX_LEN = 16, 4096
TOLERANCE = 0.01  # of the norm: bfloat16 keeps 8 bits
SHAPES = {  # heads, key heads, head's size, rotated, interleaved, normed, window
    "qwen3": (32, 8, 128, 128, False, True, None),
    "qwen2": (28, 4, 128, 128, False, False, None),
    "glm4": (32, 2, 128, 64, True, False, None),
    "mistral": (32, 8, 128, 128, False, False, 700),
    "small": (8, 8, 64, 64, False, True, None),
}


MANY = [(1, 3000, 0), (1, 1, 0), (40, 1500, 0), (100, 2500, 0), (200, 700, 0), (64, 400, 300), (300, 2600, 0)]
CASES = [*(("qwen3", *case) for case in MANY), *((name, 16, 1500, chunk) for name in SHAPES for chunk in (0, 70))]


@pytest.mark.parametrize(("name", "rows", "longest", "chunk"), CASES)
def test_rows_get_what_plain_attention_gives_them(name: str, rows: int, longest: int, chunk: int) -> None:
    kernel = find_flash_attention()
    if kernel is None:
        pytest.skip("no FlashAttention here")
    heads, kv_heads, dim, rotary, interleaved, normed, window = SHAPES[name]
    rng, generator = np.random.default_rng(rows), torch.Generator("cuda").manual_seed(rows)
    lengths = [*rng.integers(1, longest + 1, rows).tolist(), *([chunk + 9] if chunk else [])]
    lengths[0] = longest
    limits = StepLimits(512, 8192, MAX_LEN, BLOCK_SIZE, 64, torch.bfloat16)
    inputs = step_of(lengths, [1] * rows + ([chunk] if chunk else []), limits)
    batch = Batch.from_step(inputs, "cuda")
    norms = [torch.rand(dim, device="cuda", generator=generator).bfloat16() + 0.5 for _ in range(2)]
    q_norm, k_norm = norms if normed else (None, None)
    spec = AttentionSpec(heads, kv_heads, dim, window, q_norm, k_norm, 1e-6)
    angles = torch.rand(batch.num_tokens, 1, rotary // 2, device="cuda", generator=generator) * 6
    rotation = Rotation(angles.cos(), angles.sin(), rotary, interleaved)
    width = (heads + 2 * kv_heads) * dim
    qkv = torch.randn(batch.num_tokens, width, device="cuda", generator=generator).bfloat16()
    num_blocks = int(batch.block_table.max()) + 1
    caches = [KVCache(1, num_blocks, BLOCK_SIZE, kv_heads, dim, torch.bfloat16, "cuda") for _ in range(2)]
    caches[0]._data.normal_(generator=generator)
    caches[1]._data.copy_(caches[0]._data)
    ours = DecodesApart(spec, FlashAttention(spec, kernel))
    for again in range(2):  # what the first leaves behind is nobody's
        out = ours.attend(qkv.clone(), rotation, caches[0].layer(0), batch)
        expected = TorchAttention(spec).attend(qkv.clone(), rotation, caches[1].layer(0), batch)
        assert (out.float() - expected.float()).norm() / expected.float().norm() < TOLERANCE, again
        worst = (out.float() - expected.float()).norm(dim=1) / expected.float().norm(dim=1)
        assert worst.max() < 3 * TOLERANCE, f"row {int(worst.argmax())} of length {lengths[int(worst.argmax())]}"
    written = (caches[0]._data.float() - caches[1]._data.float()).abs()
    assert written.max() <= 0.04, "the cache differs by more than a rounding"


def test_cuts_never_outnumber_the_counters() -> None:
    for rows, kv_heads, longest in itertools.product(range(1, 1025), (1, 2, 8, 32), (128, MAX_LEN, 1 << 17)):
        cuts, tiling = cutting(rows, kv_heads, longest, 132)
        assert cuts & (cuts - 1) == 0
        assert tiling.least % tiling.keys == 0
        assert cuts == 1 or cuts * rows * kv_heads <= MOST_PARTS
