"""Triton kernels around the matrix products: each reads its input once and writes its output once.

Arithmetic is float32 inside, rounded where the torch reference rounds: behind the norm and behind the rotation.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import AttentionSpec
from ..kv_cache import LayerCache
from ..rope import Rotation
from .chain import chained, may_follow, wait_for_inputs

_GATED_BLOCK = 1024
_HEADS_EACH = 8  # of a program that rotates


@triton.jit  # type: ignore[untyped-decorator]
def _rms_norm(x, weight, out, size, eps, BLOCK: tl.constexpr, CHAINED: tl.constexpr):  # type: ignore[no-untyped-def]
    may_follow(CHAINED)
    wait_for_inputs(CHAINED)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < size
    value = tl.load(x + row * size + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / size + eps)
    result = value * scale * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * size + at, result.to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H] normed over H."""
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x.shape[-1]
    block = triton.next_power_of_2(size)
    warps = 8 if block >= 4096 else 4
    if len(x):
        _rms_norm[(x.numel() // size,)](
            x, weight, out, size, eps, BLOCK=block, CHAINED=chained(), launch_pdl=chained(), num_warps=warps
        )
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul(x, out, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(x + row * 2 * size + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * 2 * size + size + at, mask=inside, other=0.0).to(tl.float32)
    gated = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * size + at, (gated * up).to(out.dtype.element_ty), mask=inside)


def silu_mul(x: Tensor) -> Tensor:
    """silu(gate) * up [T, I] of x [T, 2 I], the gate first."""
    size = x.shape[-1] // 2
    out = x.new_empty(len(x), size)
    if len(x):
        _silu_mul[(len(x), triton.cdiv(size, _GATED_BLOCK))](x, out, size, BLOCK=_GATED_BLOCK)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def rotation_pairs(at, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr):  # type: ignore[no-untyped-def]
    """For dimensions of a head: which other one each is rotated with, by which angle, and the sign of the other."""
    half: tl.constexpr = ROTARY // 2
    if INTERLEAVED:
        partner = tl.where(at < ROTARY, at ^ 1, at)
        angle = at // 2
        sign = tl.where(at % 2 == 0, -1.0, 1.0)
    else:
        partner = tl.where(at < half, at + half, tl.where(at < ROTARY, at - half, at))
        angle = tl.where(at < half, at, at - half)
        sign = tl.where(at < half, -1.0, 1.0)
    return partner, angle, sign


@triton.jit  # type: ignore[untyped-decorator]
def _rotate_and_store(  # type: ignore[no-untyped-def]
    qkv, cos, sin, q_weight, k_weight, slots, queries, keys, values, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORMED: tl.constexpr, BLOCK: tl.constexpr, EACH: tl.constexpr,
):  # fmt: skip
    """Some heads of one token: norm, rotation, and the way to where they are read."""
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * EACH + tl.arange(0, EACH))[:, None]
    at = tl.arange(0, BLOCK)[None, :]
    inside = (at < DIM) & (head < HEADS + 2 * KV_HEADS)
    is_query, is_value = head < HEADS, head >= HEADS + KV_HEADS
    half: tl.constexpr = ROTARY // 2
    partner, angle, sign = rotation_pairs(at, ROTARY, INTERLEAVED)
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * DIM
    x = tl.load(source + at, mask=inside, other=0.0)
    own = x.to(tl.float32)
    other = tl.load(source + partner, mask=inside, other=0.0).to(tl.float32)
    if NORMED:
        scale = tl.rsqrt(tl.sum(own * own, 1) / DIM + eps)[:, None]
        known = at < DIM
        q_own, k_own = tl.load(q_weight + at, mask=known, other=0.0), tl.load(k_weight + at, mask=known, other=0.0)
        q_other = tl.load(q_weight + partner, mask=known, other=0.0)
        k_other = tl.load(k_weight + partner, mask=known, other=0.0)
        own = own * scale * tl.where(is_query, q_own, k_own).to(tl.float32)
        other = other * scale * tl.where(is_query, q_other, k_other).to(tl.float32)
        own = own.to(x.dtype).to(tl.float32)
        other = other.to(x.dtype).to(tl.float32)
    turns = at < ROTARY
    c = tl.load(cos + token * half + angle, mask=turns, other=1.0)
    s = tl.load(sin + token * half + angle, mask=turns, other=0.0)
    turned = (own * c + sign * other * s).to(x.dtype)
    slot = tl.load(slots + token).to(tl.int64)
    tl.store(queries + (token * HEADS + head) * DIM + at, turned, mask=inside & is_query)
    is_key = (head >= HEADS) & (head < HEADS + KV_HEADS)
    tl.store(keys + (slot * KV_HEADS + head - HEADS) * DIM + at, turned, mask=inside & is_key)
    tl.store(values + (slot * KV_HEADS + head - HEADS - KV_HEADS) * DIM + at, x, mask=inside & is_value)


def rotate_and_store(
    qkv: Tensor, rotation: Rotation, spec: AttentionSpec, cache: LayerCache, cache_slots: Tensor
) -> Tensor:
    """Norms and rotates queries and keys, writes keys and values to the cache; the queries [T, heads, head_dim].

    qkv [T, (heads + 2 * kv heads) * head_dim] and the cache's layer are contiguous.
    """
    queries = qkv.new_empty(len(qkv), spec.num_heads, spec.head_dim)
    q_weight, k_weight = (qkv if weight is None else weight for weight in (spec.q_norm, spec.k_norm))
    _rotate_and_store[(len(qkv), triton.cdiv(spec.num_heads + 2 * spec.num_kv_heads, _HEADS_EACH))](
        qkv,
        rotation.cos,
        rotation.sin,
        q_weight,
        k_weight,
        cache_slots,
        queries,
        cache.flat_keys,
        cache.flat_values,
        spec.norm_eps,
        HEADS=spec.num_heads,
        KV_HEADS=spec.num_kv_heads,
        DIM=spec.head_dim,
        ROTARY=rotation.rotary_dim,
        INTERLEAVED=rotation.interleaved,
        NORMED=spec.q_norm is not None,
        BLOCK=triton.next_power_of_2(spec.head_dim),
        EACH=_HEADS_EACH,
        num_warps=4,
    )
    return queries
