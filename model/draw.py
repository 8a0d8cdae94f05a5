"""Random draws: temperature, min_p, top_k and top_p, then the Gumbel-max trick.

The largest of logit / temperature + Gumbel noise falls on a token with its softmax probability, so one argmax is the
draw, and noise bound to (seed, position, token id) makes it the same whatever else is in the batch. Truncated rows
look at their most likely tokens only (a top-k search instead of a sort of the vocabulary wherever the row allows it):
how many depends on the row alone, so a row meets the same arithmetic alone and in a batch. top_k keeps exactly k
tokens (which of several equal ones at the cut is the device's choice); the order is vLLM's, which applies min_p first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import gumbel
from .tiles import tiles

WHOLE = 0  # no truncation: every token is a candidate
NARROW = 64  # candidates of a row with top_k up to this
WIDE = 1024
NUCLEUS = -1  # top_p alone, or top_k beyond WIDE: as many candidates as the row's distribution needs


def draw_kind(top_k: int, top_p: float, vocab_size: int) -> int:
    """Which of the four kinds a row is: NARROW and WIDE are also the number of its candidates."""
    if 0 < top_k < vocab_size:
        return NARROW if top_k <= NARROW else WIDE if top_k <= WIDE else NUCLEUS
    return NUCLEUS if top_p < 1 else WHOLE


@dataclass(slots=True)
class DrawStep:
    """The N rows of a step that draw in the same way."""

    kind: int
    any_min_p: bool
    rows: Tensor  # [N] int64 into the rows that sample
    keys: Tensor  # [N, 2] int32, see noise.noise_keys
    columns: Tensor  # [4, N, 1] float32: temperature, log of min_p, top_k (V when off), top_p (infinite when off)


def draw(logits: Tensor, step: DrawStep, all_ids: Tensor) -> Tensor:
    """Token ids [N] int64 for the step's rows of logits [R, V]; all_ids [V] int32 counts up. Enqueued, never waits."""
    parts = tiles(logits.shape[-1], step.rows, step.keys, *step.columns)
    tokens = [_draw_tile(logits.index_select(0, rows), step, inputs, all_ids) for rows, *inputs in parts]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)


def _draw_tile(logits: Tensor, step: DrawStep, inputs: list[Tensor], all_ids: Tensor) -> Tensor:
    keys, temperature, log_min_p, top_k, top_p = inputs
    scaled = logits.div_(temperature)
    if step.any_min_p:
        scaled.masked_fill_(scaled < scaled.amax(-1, keepdim=True) + log_min_p, -math.inf)
    if step.kind == WHOLE:
        return scaled.add_(gumbel(keys, all_ids)).argmax(-1)
    if step.kind == NUCLEUS:
        return _draw_nucleus(scaled, keys, top_k, top_p)
    values, ids = scaled.topk(min(step.kind, scaled.shape[-1]), dim=-1)
    return _draw_sorted(values, ids, _mass_within(values, top_k), keys, top_p)


def _draw_nucleus(scaled: Tensor, keys: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """On a CPU a few most likely tokens come first, and only rows whose nucleus is larger are sorted.

    A GPU would have to be asked which rows those are, so it sorts all.
    """
    if scaled.device.type != "cpu" or scaled.shape[-1] <= WIDE:
        return _draw_from_all(scaled, keys, top_k, top_p)
    values, ids = scaled.topk(WIDE, dim=-1)
    mass = scaled.softmax(-1).gather(-1, ids).cumsum(-1)
    tokens = _draw_sorted(values, ids, mass, keys, top_p)
    beyond = ((mass[:, -1:] < top_p) | (top_k < scaled.shape[-1])).squeeze(-1).nonzero().squeeze(-1)
    if len(beyond):
        tokens[beyond] = _draw_from_all(scaled[beyond], keys[beyond], top_k[beyond], top_p[beyond])
    return tokens


def _draw_from_all(scaled: Tensor, keys: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    values, ids = scaled.sort(dim=-1, descending=True, stable=True)
    return _draw_sorted(values, ids, _mass_within(values, top_k), keys, top_p)


def _mass_within(values: Tensor, top_k: Tensor) -> Tensor:
    """Cumulative probability [N, K] among each row's first top_k of its sorted values; above 1 (infinite) beyond."""
    ranks = torch.arange(values.shape[-1], device=values.device)
    mass = (values - values[:, :1]).exp_().cumsum(-1)
    last = top_k.long().clamp_(max=values.shape[-1]) - 1
    return mass.div_(mass.gather(-1, last)).masked_fill_(ranks >= last, math.inf)


def _draw_sorted(values: Tensor, ids: Tensor, mass: Tensor, keys: Tensor, top_p: Tensor) -> Tensor:
    """Draws among sorted candidates [N, K]: those before which the cumulative mass has not reached top_p."""
    outside = mass[:, :-1] >= top_p
    noisy = values + gumbel(keys, ids.int())
    noisy[:, 1:].masked_fill_(outside, -math.inf)
    return ids.gather(-1, noisy.argmax(-1, keepdim=True)).squeeze(-1)
