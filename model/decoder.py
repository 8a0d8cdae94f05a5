"""What one rank of one stage computes: its span of layers, with the embedding or the head where it has them.

Between stages travels one tensor, the hidden state [T, H] with every residual already added. Nothing here asks which
stage it is: a part that a stage lacks is None.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..configs.model_config import ModelConfig
from ..errors import ConfigError
from .attention import AttentionSpec
from .batch import Batch
from .kv_cache import KVCache, LayerCache
from .layer_span import LayerSpan
from .layers import GatedLinear, Linear, Place, ResidualLinear, RMSNorm, VocabEmbedding, VocabHead
from .rope import Rotary, Rotation
from .tensor_parallel import TensorParallel, kv_heads_per_rank, padded_vocab_per_rank, shard


class SelfAttention(nn.Module):
    """One layer's projections and the attention between them; adds to the residual."""

    def __init__(self, config: ModelConfig, layer: int, tp: TensorParallel, place: Place) -> None:
        super().__init__()
        heads = shard("attention heads", config.num_attention_heads, tp.size)
        kv_heads = kv_heads_per_rank(config.num_key_value_heads, tp.size)
        dim, hidden = config.head_dim, config.hidden_size
        self.qkv = Linear(hidden, (heads + 2 * kv_heads) * dim, config.attention_bias, place)
        self.o = ResidualLinear(heads * dim, hidden, config.attention_output_bias, place, tp)
        self.q_norm = place.empty(dim) if config.qk_norm else None
        self.k_norm = place.empty(dim) if config.qk_norm else None
        window = config.window_of(layer)
        spec = AttentionSpec(heads, kv_heads, dim, window, self.q_norm, self.k_norm, config.rms_norm_eps)
        self.backend = place.kernels.attention(spec)
        self.cache: LayerCache | None = None

    def forward(self, x: Tensor, residual: Tensor | None, rotation: Rotation, batch: Batch) -> Tensor:
        assert self.cache is not None, "bind_cache comes before the first step"
        attended = self.backend.attend(self.qkv(x), rotation, self.cache, batch)
        out: Tensor = self.o(attended, residual)
        return out


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); adds to the residual."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, place: Place) -> None:
        super().__init__()
        inner = shard("intermediate dimensions", config.intermediate_size, tp.size)
        self.gate_up = GatedLinear(config.hidden_size, inner, config.mlp_bias, place)
        self.down = ResidualLinear(inner, config.hidden_size, config.mlp_bias, place, tp)

    def forward(self, x: Tensor, residual: Tensor | None, _rotation: Rotation, _batch: Batch) -> Tensor:
        out: Tensor = self.down(self.gate_up(x), residual)
        return out


class HalfLayer(nn.Module):
    """Attention or MLP, behind a norm and added to its input."""

    def __init__(self, config: ModelConfig, branch: SelfAttention | GatedMLP, place: Place) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.branch = branch

    def forward(self, hidden: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        out: Tensor = self.branch(self.norm(hidden), hidden, rotation, batch)
        return out


class SandwichHalf(HalfLayer):
    """With a norm behind the branch too, before it is added (GLM-4)."""

    def __init__(self, config: ModelConfig, branch: SelfAttention | GatedMLP, place: Place) -> None:
        super().__init__(config, branch, place)
        self.post_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)

    def forward(self, hidden: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        out: Tensor = hidden + self.post_norm(self.branch(self.norm(hidden), None, rotation, batch))
        return out


class StageModule(nn.Module):
    """A stage's share of the model on one rank."""

    def __init__(
        self, config: ModelConfig, span: LayerSpan, tp: TensorParallel, place: Place, ends: tuple[bool, bool]
    ) -> None:
        super().__init__()
        first, last = ends
        self.span = span
        self.tp = tp
        rows = padded_vocab_per_rank(config.vocab_size, tp.size)
        self.embed_tokens = VocabEmbedding(rows, config.hidden_size, place, tp) if first else None
        branches = [
            GatedMLP(config, tp, place) if is_mlp else SelfAttention(config, layer, tp, place)
            for layer, is_mlp in span.halves
        ]
        self.attentions = [branch for branch in branches if isinstance(branch, SelfAttention)]
        kind = SandwichHalf if config.sandwich_norms else HalfLayer
        self.halves = nn.ModuleList(kind(config, branch, place) for branch in branches)
        self.pads_chunks = self.attentions[0].backend.pads_chunks
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place) if last else None
        self.lm_head: VocabHead | None = None
        if last:
            tied = self.embed_tokens if config.tie_word_embeddings else None
            weight = place.empty(rows, config.hidden_size) if tied is None else tied.weight
            self.lm_head = VocabHead(weight, config.vocab_size, place, tp)
        self.rotary = Rotary(config.rope, place.device)

    def finish(self) -> None:
        """Hands the filled weights to the kernels; the loader calls it once."""
        for part in self.modules():
            if isinstance(part, (Linear, GatedLinear, ResidualLinear, VocabHead)):
                part.finish()

    def bind_cache(self, cache: KVCache) -> None:
        """Gives each attention its part of the cache; before the first step."""
        assert cache.num_layers == len(self.attentions), (cache.num_layers, len(self.attentions))
        for index, attention in enumerate(self.attentions):
            attention.cache = cache.layer(index)

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Token ids [T] to hidden states [T, H]; the first stage only."""
        assert self.embed_tokens is not None, "only the first stage embeds"
        hidden: Tensor = self.embed_tokens(token_ids)
        return hidden

    @torch.inference_mode()
    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """The stage's layers: hidden [T, H] in and out; the input may be written over."""
        rotation = self.rotary.at(batch.positions)
        for half in self.halves:
            hidden = half(hidden, rotation, batch)
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and head: hidden [R, H] to float32 logits [R, V], the same on every rank; the last stage only."""
        assert self.norm is not None, "only the last stage has the head"
        assert self.lm_head is not None
        logits: Tensor = self.lm_head(self.norm(hidden))
        return logits

    @torch.inference_mode()
    def likeliest(self, hidden: Tensor, largest: Callable[[Tensor], Tensor]) -> Tensor:
        """What `largest`, an argmax over rows, finds in the logits, without them: hidden [R, H] to ids [R]."""
        assert self.norm is not None, "only the last stage has the head"
        assert self.lm_head is not None
        return self.lm_head.likeliest(self.norm(hidden), largest)


def build_stage_module(
    config: ModelConfig,
    span: LayerSpan,
    tp: TensorParallel,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    first: bool,
    last: bool,
) -> StageModule:
    """An unfilled module for one rank of one stage.

    Raises ConfigError for a span without an attention or beyond the model's layers, and for a tensor_parallel_size that
    doesn't divide what it must.
    """
    if not span.attentions or span.start < 0 or span.stop > 2 * config.num_hidden_layers:
        raise ConfigError(
            f"a stage needs layers within 0 to {config.num_hidden_layers}, one's attention at least; this one has "
            f"{span.start / 2:g} to {span.stop / 2:g}"
        )
    return StageModule(config, span, tp, Place.of(dtype, device), (first, last))
