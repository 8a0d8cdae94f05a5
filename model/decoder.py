"""What one rank of one stage computes: its range of layers, with the embedding or the head where it has them.

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

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        out: Tensor = self.down(self.gate_up(x), residual)
        return out


class DecoderLayer(nn.Module):
    """Attention and MLP, each behind a norm and added to its input."""

    def __init__(self, config: ModelConfig, layer: int, tp: TensorParallel, place: Place) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.attention = SelfAttention(config, layer, tp, place)
        self.mlp = GatedMLP(config, tp, place)

    def forward(self, hidden: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        hidden = self.attention(self.attention_norm(hidden), hidden, rotation, batch)
        out: Tensor = self.mlp(self.mlp_norm(hidden), hidden)
        return out


class SandwichLayer(DecoderLayer):
    """With norms behind the branches too, before they are added (GLM-4)."""

    def __init__(self, config: ModelConfig, layer: int, tp: TensorParallel, place: Place) -> None:
        super().__init__(config, layer, tp, place)
        self.post_attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)
        self.post_mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place)

    def forward(self, hidden: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        branch = self.attention(self.attention_norm(hidden), None, rotation, batch)
        hidden = hidden + self.post_attention_norm(branch)
        branch = self.mlp(self.mlp_norm(hidden), None)
        out: Tensor = hidden + self.post_mlp_norm(branch)
        return out


class StageModule(nn.Module):
    """A stage's share of the model on one rank."""

    def __init__(
        self, config: ModelConfig, layer_range: range, tp: TensorParallel, place: Place, ends: tuple[bool, bool]
    ) -> None:
        super().__init__()
        first, last = ends
        self.layer_range = layer_range
        self.tp = tp
        rows = padded_vocab_per_rank(config.vocab_size, tp.size)
        kind = SandwichLayer if config.sandwich_norms else DecoderLayer
        self.embed_tokens = VocabEmbedding(rows, config.hidden_size, place, tp) if first else None
        layers = [kind(config, layer, tp, place) for layer in layer_range]
        self.layers = nn.ModuleList(layers)
        self.pads_chunks = layers[0].attention.backend.pads_chunks
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
        """Gives each layer its part of the cache; before the first step."""
        assert cache.num_layers == len(self.layers), (cache.num_layers, len(self.layers))
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            layer.attention.cache = cache.layer(index)

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
        for layer in self.layers:
            hidden = layer(hidden, rotation, batch)
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
    layer_range: range,
    tp: TensorParallel,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    first: bool,
    last: bool,
) -> StageModule:
    """An unfilled module for one rank of one stage.

    Raises ConfigError for an empty or impossible range of layers, and for a tensor_parallel_size that doesn't divide
    what it must.
    """
    if not layer_range or layer_range.start < 0 or layer_range.stop > config.num_hidden_layers:
        raise ConfigError(
            f"a stage needs layers within 0 to {config.num_hidden_layers}; this one has {layer_range.start} to "
            f"{layer_range.stop}"
        )
    return StageModule(config, layer_range, tp, Place.of(dtype, device), (first, last))
