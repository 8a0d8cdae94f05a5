"""Random tiny models of every family, written as Hugging Face folders, and transformers' own answers for them.

Weights have a standard deviation of 0.08, so that near-ties of logits are rare and greedy tokens can be compared
exactly in float32. Sizes are odd on purpose: grouped heads of 1 to 4, head_dim unequal to hidden / heads, 5 to 11
layers, tied and untied heads, both forms of `config.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

VOCAB_SIZE = 211
MAX_POSITIONS = 512
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": MAX_POSITIONS // 4}


@dataclass(frozen=True)
class TinyModel:
    """One shape of a family."""

    name: str
    config_class: str  # in transformers
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int = 48
    tied: bool = False
    old_form: bool = False  # rope_theta, rope_scaling, torch_dtype instead of rope_parameters, dtype
    rope: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


_WINDOW = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3}

TINY_MODELS = {
    model.name: model
    for model in (
        TinyModel("llama2", "LlamaConfig", 5, 6, 6, 8, old_form=True),
        TinyModel(
            "llama3", "LlamaConfig", 7, 8, 2, 10, rope=LLAMA3_ROPE, old_form=True, extra={"attention_bias": True}
        ),
        TinyModel("llama32", "LlamaConfig", 6, 4, 2, 16, tied=True, rope=LLAMA3_ROPE, extra={"mlp_bias": True}),
        TinyModel("llama_linear", "LlamaConfig", 5, 4, 4, 12, rope={"rope_type": "linear", "factor": 2.0}),
        TinyModel("mistral", "MistralConfig", 5, 8, 2, 16, extra={"sliding_window": 11}),
        TinyModel("mistral_full", "MistralConfig", 6, 6, 2, 8, old_form=True, extra={"sliding_window": None}),
        TinyModel("qwen2", "Qwen2Config", 8, 6, 2, 8, old_form=True),
        TinyModel("qwen25", "Qwen2Config", 5, 4, 2, 12, tied=True, extra=_WINDOW),
        TinyModel("qwen3", "Qwen3Config", 6, 4, 2, 24, tied=True),
        TinyModel("qwen3_old", "Qwen3Config", 11, 8, 2, 8, hidden_size=40, old_form=True, rope=YARN_ROPE),
        TinyModel("qwen3_window", "Qwen3Config", 5, 2, 2, 16, extra=_WINDOW | {"attention_bias": True}),
        TinyModel("glm", "GlmConfig", 5, 4, 2, 16),
        TinyModel("glm4", "Glm4Config", 7, 8, 2, 12),
        TinyModel("glm4_old", "Glm4Config", 5, 4, 2, 16, tied=True, old_form=True, extra={"attention_bias": False}),
    )
}


def write_tiny_model(folder: Path, name: str, seed: int = 0, dtype: str = "float32") -> Any:
    """Writes the folder and returns transformers' model, in evaluation mode."""
    transformers: Any = import_module("transformers")
    transformers.utils.logging.disable_progress_bar()
    shape = TINY_MODELS[name]
    config = _config(shape, transformers, dtype)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    _randomise(model)
    model.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text())
    if shape.old_form:
        values = old_form(values)
    path.write_text(json.dumps(values, indent=1))
    return model.eval()


def _config(shape: TinyModel, transformers: Any, dtype: str) -> Any:
    values: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden_size,
        "intermediate_size": 88,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"} | shape.rope,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": dtype,
        "attn_implementation": "eager",
    }
    return getattr(transformers, shape.config_class)(**(values | shape.extra))


@torch.no_grad()
def _randomise(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.uniform_(0.8, 1.2)
        else:
            parameter.normal_(std=0.08)


def old_form(values: dict[str, Any]) -> dict[str, Any]:
    """The config.json as older versions of transformers wrote it."""
    values = dict(values)
    rope = dict(values.pop("rope_parameters"))
    values["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        values["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    values["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    values["torch_dtype"] = values.pop("dtype")
    values.pop("layer_types", None)
    return values
