"""What one rank of one stage computes: its range of layers, with the embedding or the head where it has them.

Between stages travels one tensor, the hidden state [T, H] with every residual already added. Nothing here asks which
stage it is: a part that a stage lacks is None.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..configs.model_config import ModelConfig
from ..errors import ConfigError
from .attention import Attention, AttentionSpec, make_attention
from .batch import Batch
from .kv_cache import KVCache, LayerCache
from .layers import Linear, Placement, RMSNorm, RowParallelLinear, VocabEmbedding, VocabHead
from .rope import Rotary, Rotation
from .tensor_parallel import TensorParallel, kv_heads_per_rank, padded_vocab_per_rank, shard


class SelfAttention(nn.Module):
    """Projections, per-head norms, rotation and attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int, tp: TensorParallel, place: Placement) -> None:
        super().__init__()
        heads = shard("attention heads", config.num_attention_heads, tp.size)
        kv_heads = kv_heads_per_rank(config.num_key_value_heads, tp.size)
        dim = config.head_dim
        self.sizes = (heads, kv_heads, kv_heads)
        self.head_dim = dim
        self.qkv = Linear(config.hidden_size, sum(self.sizes) * dim, config.attention_bias, place)
        self.o = RowParallelLinear(heads * dim, config.hidden_size, config.attention_output_bias, place, tp)
        self.q_norm = RMSNorm(dim, config.rms_norm_eps, place) if config.qk_norm else None
        self.k_norm = RMSNorm(dim, config.rms_norm_eps, place) if config.qk_norm else None
        spec = AttentionSpec(heads, kv_heads, dim, config.window_of(layer))
        self.backend: Attention = make_attention(spec, place.device)
        self.cache: LayerCache | None = None

    def forward(self, x: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        assert self.cache is not None, "bind_cache comes before the first step"
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_dim)).split(self.sizes, dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotation.apply(q), rotation.apply(k)
        out: Tensor = self.o(self.backend.attend(q, k, v, self.cache, batch))
        return out


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up being one matrix product."""

    def __init__(self, config: ModelConfig, tp: TensorParallel, place: Placement) -> None:
        super().__init__()
        inner = shard("intermediate dimensions", config.intermediate_size, tp.size)
        self.gate_up = Linear(config.hidden_size, 2 * inner, config.mlp_bias, place)
        self.down = RowParallelLinear(inner, config.hidden_size, config.mlp_bias, place, tp)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class DecoderLayer(nn.Module):
    """One layer; `post_*` norms stand behind a branch (GLM-4), the others in front of it."""

    def __init__(self, config: ModelConfig, layer: int, tp: TensorParallel, place: Placement) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(config.hidden_size, config.rms_norm_eps, place)

        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = SelfAttention(config, layer, tp, place)
        self.mlp = GatedMLP(config, tp, place)
        self.post_attention_norm = norm() if config.sandwich_norms else None
        self.post_mlp_norm = norm() if config.sandwich_norms else None

    def forward(self, hidden: Tensor, rotation: Rotation, batch: Batch) -> Tensor:
        branch = self.attention(self.attention_norm(hidden), rotation, batch)
        hidden = hidden + (branch if self.post_attention_norm is None else self.post_attention_norm(branch))
        branch = self.mlp(self.mlp_norm(hidden))
        return hidden + (branch if self.post_mlp_norm is None else self.post_mlp_norm(branch))


class StageModule(nn.Module):
    """A stage's share of the model on one rank."""

    def __init__(
        self, config: ModelConfig, layer_range: range, tp: TensorParallel, place: Placement, ends: tuple[bool, bool]
    ) -> None:
        super().__init__()
        first, last = ends
        self.layer_range = layer_range
        self.tp = tp
        self.dtype = place.dtype
        rows = padded_vocab_per_rank(config.vocab_size, tp.size)
        self.embed_tokens = VocabEmbedding(rows, config.hidden_size, place, tp) if first else None
        self.layers = nn.ModuleList(DecoderLayer(config, layer, tp, place) for layer in layer_range)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, place) if last else None
        self.lm_head: VocabHead | None = None
        if last:
            tied = self.embed_tokens if config.tie_word_embeddings else None
            weight = place.empty(rows, config.hidden_size) if tied is None else tied.weight
            self.lm_head = VocabHead(weight, config.vocab_size, tp)
        self.rotary = Rotary(config.rope, place.device)

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
        """The stage's layers: hidden [T, H] in and out, the input left as it is."""
        rotation = self.rotary.at(batch.positions, self.dtype)
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
    return StageModule(config, layer_range, tp, Placement(dtype, device), (first, last))
