"""Which part of which checkpoint tensor fills which part of a stage's parameters, for one rank.

A pure function of the configuration, the span of layers and the rank: the loader, random weights and size estimates
read the same list. Checkpoint names are the Hugging Face ones, parameter names are `StageModule`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

from ..configs.model_config import ModelConfig
from .layer_span import LayerSpan
from .tensor_parallel import kv_heads_per_rank, padded_vocab_per_rank, shard

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # in checkpoints
_ATTENTION_NORMS = "input_layernorm", "post_self_attn_layernorm"
_MLP_NORMS = "post_attention_layernorm", "post_mlp_layernorm"  # before the branch, and behind it (GLM-4)
Part = tuple[slice, ...]  # for each dimension, start and stop


@dataclass(slots=True, frozen=True)
class Piece:
    """One copy: `parameter[into] = tensor[part]`. Without a tensor's name: zeros (padding of the vocabulary)."""

    parameter: str
    into: Part
    tensor: str  # its name in the checkpoint
    shape: tuple[int, ...]  # of the whole tensor in the checkpoint
    part: Part

    @property
    def num_values(self) -> int:
        """Values that are copied."""
        return prod(each.stop - each.start for each in self.into)

    def cut(self, num_rows: int) -> Iterator[Piece]:
        """The same copy in steps of at most so many rows."""
        into, part = self.into[0], self.part[0]
        for row in range(0, part.stop - part.start, num_rows):
            count = min(num_rows, part.stop - part.start - row)
            ours = slice(into.start + row, into.start + row + count)
            theirs = slice(part.start + row, part.start + row + count)
            yield replace(self, into=(ours, *self.into[1:]), part=(theirs, *self.part[1:]))


@dataclass(slots=True, frozen=True)
class Rows:
    """Outputs of a checkpoint tensor that a rank takes, and where they go among its own."""

    tensor: str
    total: int  # outputs of the whole tensor
    start: int
    count: int
    offset: int = 0  # among the rank's own outputs


def stage_weights(config: ModelConfig, span: LayerSpan, tp_rank: int, tp_size: int) -> list[Piece]:
    """Every piece of a rank's share. The first layer brings the embedding with it, the last one the norm and head."""
    weights = _RankWeights(config, tp_rank, tp_size)
    pieces: list[Piece] = []
    first, last = span.start == 0, span.ends_with(config.num_hidden_layers)
    if first:
        pieces += weights.vocabulary("embed_tokens.weight", EMBEDDING)
    for index, (layer, is_mlp) in enumerate(span.halves):
        pieces += weights.half(f"halves.{index}.", f"model.layers.{layer}.", is_mlp)
    if last:
        pieces.append(weights.whole("norm.weight", "model.norm.weight", config.hidden_size))
        if not (first and config.tie_word_embeddings):
            pieces += weights.vocabulary("lm_head.weight", EMBEDDING if config.tie_word_embeddings else HEAD)
    return pieces


class _RankWeights:
    """Builds the pieces of one rank."""

    def __init__(self, config: ModelConfig, tp_rank: int, tp_size: int) -> None:
        self.config = config
        self.rank = tp_rank
        self.size = tp_size

    def half(self, to: str, source: str, is_mlp: bool) -> Iterator[Piece]:
        """Attention or MLP of a layer, with its norms."""
        before, behind = _MLP_NORMS if is_mlp else _ATTENTION_NORMS
        yield self.whole(f"{to}norm.weight", f"{source}{before}.weight", self.config.hidden_size)
        if self.config.sandwich_norms:
            yield self.whole(f"{to}post_norm.weight", f"{source}{behind}.weight", self.config.hidden_size)
        if is_mlp:
            yield from self._mlp(f"{to}branch.", f"{source}mlp.")
        else:
            yield from self._attention(f"{to}branch.", f"{source}self_attn.")

    def _attention(self, to: str, source: str) -> Iterator[Piece]:
        config, dim = self.config, self.config.head_dim
        width = shard("attention heads", config.num_attention_heads, self.size) * dim
        kv_width = kv_heads_per_rank(config.num_key_value_heads, self.size) * dim
        kv_total = config.num_key_value_heads * dim
        kv_start = self.rank * config.num_key_value_heads // self.size * dim
        total = config.num_attention_heads * dim
        rows = [
            Rows(f"{source}q_proj", total, self.rank * width, width),
            Rows(f"{source}k_proj", kv_total, kv_start, kv_width, width),
            Rows(f"{source}v_proj", kv_total, kv_start, kv_width, width + kv_width),
        ]
        yield from self._columns_parallel(f"{to}qkv", rows, config.attention_bias)
        yield from self._row_parallel(f"{to}o", f"{source}o_proj", (total, width), config.attention_output_bias)
        if config.qk_norm:
            yield self.whole(f"{to}q_norm", f"{source}q_norm.weight", dim)
            yield self.whole(f"{to}k_norm", f"{source}k_norm.weight", dim)

    def _mlp(self, to: str, source: str) -> Iterator[Piece]:
        inner, bias = self.config.intermediate_size, self.config.mlp_bias
        width = shard("intermediate dimensions", inner, self.size)
        start = self.rank * width
        if self.config.fused_gate_up:
            both = f"{source}gate_up_proj"
            rows = [Rows(both, 2 * inner, start, width), Rows(both, 2 * inner, inner + start, width, width)]
        else:
            rows = [
                Rows(f"{source}gate_proj", inner, start, width),
                Rows(f"{source}up_proj", inner, start, width, width),
            ]
        yield from self._columns_parallel(f"{to}gate_up", rows, bias)
        yield from self._row_parallel(f"{to}down", f"{source}down_proj", (inner, width), bias)

    def _columns_parallel(self, to: str, rows: list[Rows], bias: bool) -> Iterator[Piece]:
        hidden = self.config.hidden_size
        for row in rows:
            into, part = slice(row.offset, row.offset + row.count), slice(row.start, row.start + row.count)
            shape = (row.total, hidden)
            yield Piece(
                f"{to}.weight", (into, slice(0, hidden)), f"{row.tensor}.weight", shape, (part, slice(0, hidden))
            )
            if bias:
                yield Piece(f"{to}.bias", (into,), f"{row.tensor}.bias", (row.total,), (part,))

    def _row_parallel(self, to: str, source: str, inputs: tuple[int, int], bias: bool) -> Iterator[Piece]:
        total, width = inputs
        hidden = self.config.hidden_size
        part = (slice(0, hidden), slice(self.rank * width, (self.rank + 1) * width))
        yield Piece(f"{to}.weight", (slice(0, hidden), slice(0, width)), f"{source}.weight", (hidden, total), part)
        if bias:
            yield self.whole(f"{to}.bias", f"{source}.bias", hidden)

    def vocabulary(self, to: str, source: str) -> Iterator[Piece]:
        """The rank's rows, those beyond the vocabulary being zero."""
        vocab, hidden = self.config.vocab_size, self.config.hidden_size
        per_rank = padded_vocab_per_rank(vocab, self.size)
        start = self.rank * per_rank
        count = max(0, min(per_rank, vocab - start))
        if count:
            part = (slice(start, start + count), slice(0, hidden))
            yield Piece(to, (slice(0, count), slice(0, hidden)), source, (vocab, hidden), part)
        if count < per_rank:
            padding = (slice(count, per_rank), slice(0, hidden))
            yield Piece(to, padding, "", (per_rank - count, hidden), padding)

    def whole(self, to: str, source: str, size: int) -> Piece:
        return Piece(to, (slice(0, size),), source, (size,), (slice(0, size),))
