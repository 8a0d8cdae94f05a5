"""The families that Penstock serves, as data: what sets each apart from a plain Llama decoder.

A new family whose differences are among these columns is one more row. Sources: the families' published
`config.json` files and their reference implementations in transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Choice = Literal["never", "always", "as_configured"]
WindowRule = Literal["none", "all_layers", "from_max_window_layers"]


@dataclass(slots=True, frozen=True)
class Architecture:
    """One row: the differences of a family, and the values that its `config.json` may leave out."""

    name: str  # in `architectures` of config.json
    qkv_bias: Choice = "as_configured"  # "as_configured": by `attention_bias`
    output_bias: Choice = "as_configured"  # of the attention's output projection, likewise
    mlp_bias: Choice = "never"
    qk_norm: bool = False  # an RMS norm over each head of query and key, before the rotation
    sandwich_norms: bool = False  # norms behind attention and MLP too, before the residual is added
    fused_gate_up: bool = False  # the checkpoint holds gate and up as one tensor
    interleaved_rope: bool = False  # pairs are neighbours (0, 1), (2, 3), ... and not halves
    partial_rotary: float | None = None  # the default share of a head that is rotated; None: all, always
    window_rule: WindowRule = "none"
    default_attention_bias: bool = False
    default_head_dim: int | None = None  # None: hidden_size / num_attention_heads
    default_rms_norm_eps: float = 1e-6
    default_num_kv_heads: int | None = None  # None: as many as attention heads, which null means everywhere
    default_max_positions: int = 2048
    default_window: int = 4096  # where the family has windows; null means none


_ROWS = (
    Architecture("LlamaForCausalLM", mlp_bias="as_configured"),
    Architecture(
        "MistralForCausalLM",
        qkv_bias="never",
        output_bias="never",
        window_rule="all_layers",
        default_num_kv_heads=8,
        default_max_positions=131072,
    ),
    Architecture(
        "Qwen2ForCausalLM",
        qkv_bias="always",
        output_bias="never",
        window_rule="from_max_window_layers",
        default_num_kv_heads=32,
        default_max_positions=32768,
    ),
    Architecture(
        "Qwen3ForCausalLM",
        qk_norm=True,
        window_rule="from_max_window_layers",
        default_head_dim=128,
        default_num_kv_heads=32,
        default_max_positions=32768,
    ),
    Architecture(
        "GlmForCausalLM",
        output_bias="never",
        fused_gate_up=True,
        interleaved_rope=True,
        partial_rotary=0.5,
        default_attention_bias=True,
        default_head_dim=128,
        default_rms_norm_eps=1.5625e-7,
        default_num_kv_heads=2,
        default_max_positions=131072,
    ),
    Architecture(
        "Glm4ForCausalLM",
        output_bias="never",
        sandwich_norms=True,
        fused_gate_up=True,
        interleaved_rope=True,
        partial_rotary=0.5,
        default_attention_bias=True,
        default_head_dim=128,
        default_rms_norm_eps=1.5625e-7,
        default_num_kv_heads=2,
        default_max_positions=131072,
    ),
)

ARCHITECTURES: dict[str, Architecture] = {row.name: row for row in _ROWS}
