"""Attention of one new token a sequence over the paged cache, with all that lies between the two projections.

One program for each sequence, key head and cut of the keys: it norms and rotates its query heads and the new key,
writes key and value to the cache, and attends with the running maximum of "Online normalizer calculation for softmax"
(https://arxiv.org/abs/1805.02867). Few sequences, and long ones, are cut along the keys (Flash-Decoding, Dao et al.
2023): each cut leaves its part, and the last to arrive adds them up in their order, so that a step always gives the
same bits. What has most keys to read begins first (longest processing time, Graham 1969): the device would wait for one
long sequence otherwise.

Beside FlashAttention 3, which pads the few query rows to a tile of many, several small programs share a multiprocessor
and keep more of the memory's bandwidth busy (LOG.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..attention import AttentionSpec
from ..batch import Batch
from ..kv_cache import LayerCache
from ..rope import Rotation
from .chain import chained, may_follow, wait_for_inputs
from .fused import rotation_pairs

PROGRAMS_EACH = 4  # of a multiprocessor, where keys are cut for their sake
# Up to so many pairs of a sequence and a key head for each multiprocessor: cuts, and the least keys of one (LOG.md).
_MANY_CUTS = ((2, 8, 256), (6, 4, 512), (20, 2, 1024))
_NO_CUTS = (0, 1, 1024)
_LONG = 8192  # tokens of a sequence at most, beyond which there are twice as many cuts
MOST_PARTS = 8192  # that cuts leave, 8 kB each
_LEAST_GROUP = 16  # rows of a tile of the matrix instruction
_SORTED_EACH, _COMPARED = 16, 128  # pairs of a program that sorts, and with how many it compares them at a time


@dataclass(slots=True, frozen=True)
class Tiling:
    """How a program goes through its keys."""

    keys: int  # at a time
    stages: int
    warps: int
    least: int = 64  # keys of a cut; a multiple of `keys`


# The best on an H200 (LOG.md): where sequences are many, and where few of them are cut to fill the device.
MANY, FEW = Tiling(64, 3, 2), Tiling(64, 2, 4)


@triton.jit  # type: ignore[untyped-decorator]
def _keys_of_cut(span, CUTS: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keys of a cut, at most, of so many in all."""
    return tl.maximum(tl.cdiv(tl.cdiv(span, CUTS), KEYS) * KEYS, LEAST)


@triton.jit  # type: ignore[untyped-decorator]
def _work_of(seq_lens, pair, num_pairs, CUTS: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Keys that a cut of a row reads, and the row's length; nothing beyond the last pair."""
    inside = pair < num_pairs
    length = tl.load(seq_lens + pair // CUTS, mask=inside, other=0)
    each = _keys_of_cut(length, CUTS, KEYS, LEAST)
    work = tl.minimum(tl.maximum(length - pair % CUTS * each, 0), each)
    return tl.where(inside, work, -1), length


@triton.jit(do_not_specialize=["num_pairs"])  # type: ignore[untyped-decorator]
def _sort_by_work(  # type: ignore[no-untyped-def]
    seq_lens, order, num_pairs,
    CUTS: tl.constexpr, KEYS: tl.constexpr, LEAST: tl.constexpr, OWN: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """Each pair's place is the number of those that come before it."""
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    work, length = _work_of(seq_lens, own, num_pairs, CUTS, KEYS, LEAST)
    place = tl.zeros((OWN,), tl.int32)
    for first in range(0, num_pairs, OTHERS):
        other = first + tl.arange(0, OTHERS)
        theirs, _ = _work_of(seq_lens, other, num_pairs, CUTS, KEYS, LEAST)
        earlier = (theirs[None, :] == work[:, None]) & (other[None, :] < own[:, None])
        place += tl.sum(((theirs[None, :] > work[:, None]) | earlier).to(tl.int32), 1)
    tl.store(order + place, length.to(tl.int64) << 32 | own, mask=own < num_pairs)


@triton.jit  # type: ignore[untyped-decorator]
def _decode_attention(  # type: ignore[no-untyped-def]
    qkv, cos, sin, q_weight, k_weight, slots, table, order, keys, values, out, parts, maxima, sums, arrived,
    eps, scale, table_width,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr, NORMED: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr,
    CUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
    LEAST: tl.constexpr, CHAINED: tl.constexpr,
):  # fmt: skip
    kv_head = tl.program_id(0)
    may_follow(CHAINED)
    wait_for_inputs(CHAINED)
    item = tl.load(order + tl.program_id(1))
    length = (item >> 32).to(tl.int32)
    row = (item & 0xFFFFFFFF) // CUTS
    cut = ((item & 0xFFFFFFFF) % CUTS).to(tl.int32)
    past = length - 1
    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(length - WINDOW, 0)
    each = _keys_of_cut(past - begin, CUTS, KEYS, LEAST)
    used = tl.maximum(tl.cdiv(past - begin, each), 1)
    if cut >= used:
        return
    start = begin + cut * each
    end = tl.minimum(start + each, past)
    newest = cut == used - 1
    at = tl.arange(0, BLOCK)
    inside = at < DIM
    group = tl.arange(0, ROWS)
    heads = kv_head * GROUP + group
    owned = (group < GROUP)[:, None] & inside[None, :]
    half: tl.constexpr = ROTARY // 2
    partner, angle, sign = rotation_pairs(at, ROTARY, INTERLEAVED)
    turns = at < ROTARY
    c = tl.load(cos + row * half + angle, mask=turns, other=1.0)
    s = tl.load(sin + row * half + angle, mask=turns, other=0.0) * sign
    token = qkv + row * (HEADS + 2 * KV_HEADS) * DIM

    q_own = tl.load(token + heads[:, None] * DIM + at[None, :], mask=owned, other=0.0)
    q_other = tl.load(token + heads[:, None] * DIM + partner[None, :], mask=owned, other=0.0).to(tl.float32)
    new = token + (HEADS + kv_head) * DIM
    k_own = tl.load(new + at, mask=inside, other=0.0).to(tl.float32)
    k_other = tl.load(new + partner, mask=inside, other=0.0).to(tl.float32)
    v_new = tl.load(new + KV_HEADS * DIM + at, mask=inside, other=0.0)
    own = q_own.to(tl.float32)
    if NORMED:
        q_scale = tl.rsqrt(tl.sum(own * own, 1) / DIM + eps)[:, None]
        own = own * q_scale * tl.load(q_weight + at, mask=inside, other=0.0).to(tl.float32)[None, :]
        q_other = q_other * q_scale * tl.load(q_weight + partner, mask=inside, other=0.0).to(tl.float32)[None, :]
        own = own.to(q_own.dtype).to(tl.float32)
        q_other = q_other.to(q_own.dtype).to(tl.float32)
        k_scale = tl.rsqrt(tl.sum(k_own * k_own, 0) / DIM + eps)
        k_own = k_own * k_scale * tl.load(k_weight + at, mask=inside, other=0.0).to(tl.float32)
        k_other = k_other * k_scale * tl.load(k_weight + partner, mask=inside, other=0.0).to(tl.float32)
        k_own = k_own.to(q_own.dtype).to(tl.float32)
        k_other = k_other.to(q_own.dtype).to(tl.float32)
    q = (own * c[None, :] + q_other * s[None, :]).to(q_own.dtype)
    k_new = (k_own * c + k_other * s).to(q_own.dtype)

    if newest:
        slot = tl.load(slots + row).to(tl.int64)
        place = (slot * KV_HEADS + kv_head) * DIM + at
        tl.store(keys + place, k_new, mask=inside)
        tl.store(values + place, v_new, mask=inside)
    own_score = tl.sum(q.to(tl.float32) * k_new.to(tl.float32)[None, :], 1) * scale
    largest = tl.where(newest, own_score, -1.0e30)
    total = tl.where(newest, own_score * 0.0 + 1.0, 0.0)
    acc = tl.where(newest, tl.zeros((ROWS, BLOCK), tl.float32) + v_new.to(tl.float32)[None, :], 0.0)

    for first in tl.range(start, end, KEYS, num_stages=STAGES):
        position = first + tl.arange(0, KEYS)
        seen = position < end
        block = tl.load(table + row * table_width + position // BLOCK_SIZE, mask=seen, other=0)
        cached = (block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE) * KV_HEADS + kv_head
        wanted = seen[:, None] & inside[None, :]
        k = tl.load(keys + cached[:, None] * DIM + at[None, :], mask=wanted, other=0.0)
        v = tl.load(values + cached[:, None] * DIM + at[None, :], mask=wanted, other=0.0)
        scores = tl.where(seen[None, :], tl.dot(q, k.T) * scale, -1.0e30)
        newer = tl.maximum(largest, tl.max(scores, 1))
        shrink = tl.exp2(largest - newer)
        weights = tl.exp2(scores - newer[:, None])
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None])
        largest = newer

    result = out + row * HEADS * DIM + heads[:, None] * DIM + at[None, :]
    if used == 1:
        tl.store(result, (acc / total[:, None]).to(out.dtype.element_ty), mask=owned)
    else:
        pair = row * KV_HEADS + kv_head
        part = (pair * CUTS + cut) * ROWS
        tl.store(parts + (part + group)[:, None] * BLOCK + at[None, :], acc)
        tl.store(maxima + part + group, largest)
        tl.store(sums + part + group, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived + pair, 1, sem="acq_rel") == used - 1:
            largest = tl.zeros((ROWS,), tl.float32) - 1.0e30
            total = tl.zeros((ROWS,), tl.float32)
            acc = tl.zeros((ROWS, BLOCK), tl.float32)
            for other in range(used):
                part = (pair * CUTS + other) * ROWS
                theirs = tl.load(maxima + part + group, cache_modifier=".cg")
                newer = tl.maximum(largest, theirs)
                shrink, grow = tl.exp2(largest - newer), tl.exp2(theirs - newer)
                their_acc = tl.load(parts + (part + group)[:, None] * BLOCK + at[None, :], cache_modifier=".cg")
                total = total * shrink + tl.load(sums + part + group, cache_modifier=".cg") * grow
                acc = acc * shrink[:, None] + their_acc * grow[:, None]
                largest = newer
            tl.store(result, (acc / total[:, None]).to(out.dtype.element_ty), mask=owned)
            tl.store(arrived + pair, 0)


def cutting(rows: int, kv_heads: int, max_seq_len: int, num_processors: int) -> tuple[int, Tiling]:
    """Cuts along the keys, at most, and how a program goes through its own.

    Few sequences are cut to give each multiprocessor some programs; many only where they are long, and the rarer the
    more there are: even a long one then ends with the others, since it has begun with the first.
    """
    pairs = rows * kv_heads
    cuts, tiling = PROGRAMS_EACH * num_processors // pairs, FEW
    if cuts <= PROGRAMS_EACH:
        wanted = (each for each in _MANY_CUTS if pairs <= each[0] * num_processors)
        _, cuts, least = next(wanted, _NO_CUTS)
        tiling = replace(MANY, least=least)
    if max_seq_len > _LONG:
        cuts *= 2
    most = min(max_seq_len // 256, MOST_PARTS // pairs, 32)
    return 1 << max(0, min(cuts, most).bit_length() - 1), tiling


def decode_attention(
    qkv: Tensor,
    rotation: Rotation,
    spec: AttentionSpec,
    cache: LayerCache,
    batch: Batch,
    arrived: Tensor,
    cuts: int,
    tiling: Tiling,
) -> Tensor:
    """qkv [S, (heads + 2 * kv heads) * head_dim] of a step of decodes to [S, heads * head_dim].

    `arrived` holds zeros, one for each sequence and key head where keys are cut, and holds them again afterwards.
    """
    rows, group = len(qkv), spec.num_heads // spec.num_kv_heads
    padded = max(_LEAST_GROUP, triton.next_power_of_2(group))
    width = triton.next_power_of_2(spec.head_dim)
    out = qkv.new_empty(rows, spec.num_heads * spec.head_dim)
    num_sums = rows * spec.num_kv_heads * cuts * padded if cuts > 1 else 0
    parts = qkv.new_empty(num_sums * (width + 2), dtype=torch.float32)
    q_weight, k_weight = (qkv if weight is None else weight for weight in (spec.q_norm, spec.k_norm))
    _decode_attention[(spec.num_kv_heads, rows * cuts)](
        qkv,
        rotation.cos,
        rotation.sin,
        q_weight,
        k_weight,
        batch.cache_slots,
        batch.block_table,
        _order_of(batch, cuts, tiling),
        cache.flat_keys,
        cache.flat_values,
        out,
        parts[2 * num_sums :],
        parts[:num_sums],
        parts[num_sums : 2 * num_sums],
        arrived,
        spec.norm_eps,
        spec.scale * math.log2(math.e),
        batch.block_table.stride(0),
        HEADS=spec.num_heads,
        KV_HEADS=spec.num_kv_heads,
        GROUP=group,
        DIM=spec.head_dim,
        ROTARY=rotation.rotary_dim,
        INTERLEAVED=rotation.interleaved,
        NORMED=spec.q_norm is not None,
        BLOCK_SIZE=cache.keys.shape[1],
        WINDOW=spec.window or 0,
        CUTS=cuts,
        ROWS=padded,
        BLOCK=width,
        KEYS=tiling.keys,
        STAGES=tiling.stages,
        LEAST=tiling.least,
        CHAINED=chained(),
        launch_pdl=chained(),
        num_warps=tiling.warps,
    )
    return out


def _order_of(batch: Batch, cuts: int, tiling: Tiling) -> Tensor:
    """[S * cuts] int64, for all layers of the step: a row's length, and which cut of which row, most work first."""
    found: Tensor | None = batch.prepared.get((cuts, tiling))
    if found is None:
        num_pairs = batch.num_rows * cuts
        found = torch.empty(num_pairs, dtype=torch.int64, device=batch.seq_lens.device)
        batch.prepared[cuts, tiling] = found
        _sort_by_work[(triton.cdiv(num_pairs, _SORTED_EACH),)](
            batch.seq_lens,
            found,
            num_pairs,
            CUTS=cuts,
            KEYS=tiling.keys,
            LEAST=tiling.least,
            OWN=_SORTED_EACH,
            OTHERS=_COMPARED,
        )
    return found
