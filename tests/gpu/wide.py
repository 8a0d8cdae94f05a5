"""Models of real width with one or two layers and random weights: transformers' in float32, and ours over the same."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from penstock.configs.model_config import ModelConfig, read_model_config
from penstock.model.decoder import StageModule, build_stage_module
from penstock.model.layer_span import LayerSpan
from penstock.model.loader import _fill
from penstock.model.tensor_parallel import NoTensorParallel, TensorParallel
from penstock.model.weight_map import Piece, stage_weights

VOCAB_SIZE = 4096
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {  # hidden, intermediate, heads, kv heads: as the 7 to 9 B models have
    "llama": ("LlamaConfig", {"sizes": (4096, 14336, 32, 8), "rope": LLAMA3}),
    "mistral": ("MistralConfig", {"sizes": (4096, 14336, 32, 8), "sliding_window": 32}),
    "qwen2": ("Qwen2Config", {"sizes": (3584, 18944, 28, 4)}),
    "qwen3": ("Qwen3Config", {"sizes": (4096, 12288, 32, 8)}),
    "glm": ("GlmConfig", {"sizes": (4096, 13696, 32, 2), "partial_rotary_factor": 0.5}),
    "glm4": ("Glm4Config", {"sizes": (4096, 13696, 32, 2), "partial_rotary_factor": 0.5}),
}


@dataclass(frozen=True)
class StateDict:
    """A loader's source over tensors in memory."""

    tensors: dict[str, Tensor]

    def read(self, piece: Piece) -> Tensor:
        return self.tensors[piece.tensor][piece.part]


def wide_model(folder: Path, name: str, num_layers: int = 2) -> tuple[Any, ModelConfig, dict[str, Tensor]]:
    """transformers' model on the GPU, in float32 with weights that bfloat16 holds exactly; its config; its tensors."""
    transformers: Any = import_module("transformers")
    class_name, given = SHAPES[name]
    options = dict(given)
    hidden, intermediate, heads, kv_heads = options.pop("sizes")
    rope = {"rope_theta": 500000.0, "rope_type": "default"} | options.pop("rope", {})
    config = getattr(transformers, class_name)(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=num_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        max_position_embeddings=4096,
        rope_parameters=rope | {k: v for k, v in options.items() if k == "partial_rotary_factor"},
        tie_word_embeddings=False,
        pad_token_id=None,
        attn_implementation="eager",
        dtype="bfloat16",
        **{k: v for k, v in options.items() if k != "partial_rotary_factor"},
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("norm.weight"):
                parameter.uniform_(0.8, 1.2)
            else:
                parameter.normal_(std=0.03)
            parameter.copy_(parameter.bfloat16().float())
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    return model, read_model_config(folder), dict(model.state_dict())


def our_module(config: ModelConfig, tensors: dict[str, Tensor], tp: TensorParallel | None = None) -> StageModule:
    """All layers as one stage, or a rank's share of them, in bfloat16 on the GPU."""
    span, tp = LayerSpan.of(range(config.num_hidden_layers)), tp or NoTensorParallel()
    module = build_stage_module(config, span, tp, dtype=torch.bfloat16, device="cuda", first=True, last=True)
    _fill(module, StateDict(tensors), stage_weights(config, span, tp.rank, tp.size))
    module.finish()
    return module
