"""What a Hugging Face folder says of its model: `config.json` in either form, and `generation_config.json`.

Everything is resolved here (defaults of the family, biases, windows, eos lists), so that nothing behind this module
asks for a family's name. Code in a model folder (`auto_map`) is never run: only the architecture's name counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ModelError
from .architectures import ARCHITECTURES, Architecture, Choice
from .json_fields import Fields
from .rope_config import RopeConfig, read_rope
from .weight_files import stored_dtype

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(slots=True, frozen=True)
class GenerationDefaults:
    """Sampling values that generation_config.json recommends; None where it is silent."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(slots=True, frozen=True)
class ModelConfig:
    """One decoder-only model, as numbers and switches."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_word_embeddings: bool = False
    attention_bias: bool = False  # of query, key and value
    attention_output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sandwich_norms: bool = False
    fused_gate_up: bool = False  # in the checkpoint
    sliding_window: int | None = None  # tokens that a windowed layer sees, the newest included
    windowed_layers: frozenset[int] = frozenset()
    dtype: str = "float32"
    eos_token_ids: tuple[int, ...] = ()
    generation_defaults: GenerationDefaults = field(default_factory=GenerationDefaults)

    def window_of(self, layer: int) -> int | None:
        """The sliding window of a layer; None where it attends to everything before it."""
        return self.sliding_window if layer in self.windowed_layers else None

    def ending_ids(self, tokenizers_own: int | None) -> list[int]:
        """What ends an answer: the model's ids and the tokenizer's, which a chat model's other files may not name.

        Only what the vocabulary has: files that were made for a larger one name others.
        """
        named = [*self.eos_token_ids, *([] if tokenizers_own is None else [tokenizers_own])]
        return [token_id for token_id in dict.fromkeys(named) if token_id < self.vocab_size]

    @property
    def max_model_len(self) -> int:
        """Positions that the rotation reaches: scaled ones count, where the type stretches the original range."""
        if self.rope.type == "yarn":
            return max(self.max_position_embeddings, int(self.rope.original_max_position_embeddings * self.rope.factor))
        if self.rope.type == "linear":
            return int(self.max_position_embeddings * self.rope.factor)
        return self.max_position_embeddings


def read_model_config(folder: str | Path) -> ModelConfig:
    """Reads a model folder's configuration.

    Raises ModelError: no such folder, no config.json, an unknown architecture, or a value that can't be served; the
    message names the file, the field and the value.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ModelError(f"no such model folder: {folder}")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"model folder {folder} has no config.json")
    fields = Fields.read(path)
    arch = _architecture(fields)
    _refuse_unserved(fields)
    generation_path = folder / "generation_config.json"
    generation = Fields.read(generation_path) if generation_path.is_file() else Fields(str(generation_path), {})
    return _resolve(fields, arch, generation, _dtype(fields, folder))


def _architecture(fields: Fields) -> Architecture:
    names = fields.values.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    named = ", ".join(map(str, names)) or "none named"
    raise ModelError(f"{fields.source}: unknown architecture ({named}); known are {', '.join(ARCHITECTURES)}")


def _refuse_unserved(fields: Fields) -> None:
    if fields.has("quantization_config"):
        raise ModelError(f"{fields.source}: quantized weights (quantization_config) aren't served")
    activation = fields.text("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ModelError(f"{fields.source}: hidden_act {activation!r} isn't served; only silu is")


def _resolve(fields: Fields, arch: Architecture, generation: Fields, dtype: str) -> ModelConfig:
    num_heads = fields.integer("num_attention_heads")
    absent = "num_key_value_heads" not in fields.values
    num_kv_heads = fields.integer("num_key_value_heads", (arch.default_num_kv_heads if absent else None) or num_heads)
    if num_heads % num_kv_heads:
        raise ModelError(f"{fields.source}: {num_heads} attention heads can't share {num_kv_heads} key/value heads")
    hidden_size, num_layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    head_dim = fields.integer("head_dim", arch.default_head_dim or hidden_size // num_heads)
    attention_bias = fields.flag("attention_bias", arch.default_attention_bias)
    window, windowed = _windows(fields, arch, num_layers)
    return ModelConfig(
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings", arch.default_max_positions),
        rms_norm_eps=fields.number("rms_norm_eps", arch.default_rms_norm_eps),
        rope=read_rope(fields, arch, head_dim),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        attention_bias=_chosen(arch.qkv_bias, attention_bias),
        attention_output_bias=_chosen(arch.output_bias, attention_bias),
        mlp_bias=_chosen(arch.mlp_bias, fields.flag("mlp_bias", False)),
        qk_norm=arch.qk_norm,
        sandwich_norms=arch.sandwich_norms,
        fused_gate_up=arch.fused_gate_up,
        sliding_window=window,
        windowed_layers=windowed,
        dtype=dtype,
        eos_token_ids=generation.token_ids("eos_token_id") or fields.token_ids("eos_token_id"),
        generation_defaults=_generation_defaults(generation),
    )


def _chosen(choice: Choice, configured: bool) -> bool:
    return configured if choice == "as_configured" else choice == "always"


def _windows(fields: Fields, arch: Architecture, num_layers: int) -> tuple[int | None, frozenset[int]]:
    """The window and the layers that have it: by `layer_types` where the family has windows, else by its rule."""
    if arch.window_rule == "none" or fields.values.get("sliding_window", arch.default_window) is None:
        return None, frozenset()
    window = fields.integer("sliding_window", arch.default_window)
    by_switch = arch.window_rule == "from_max_window_layers"
    if by_switch and not fields.flag("use_sliding_window", False):
        return None, frozenset()
    types = fields.values.get("layer_types")
    if types is None:
        first = int(fields.number("max_window_layers", 28)) if by_switch else 0
        return window, frozenset(range(first, num_layers))
    if not isinstance(types, list) or len(types) != num_layers:
        raise fields.wrong("layer_types", f"a list of {num_layers} names, one for each layer")
    if unknown := set(map(str, types)) - {"full_attention", "sliding_attention"}:
        raise ModelError(f"{fields.source}: layer type {min(unknown)!r} isn't served")
    return window, frozenset(i for i, kind in enumerate(types) if kind == "sliding_attention")


def _dtype(fields: Fields, folder: Path) -> str:
    """The checkpoint's: as config.json says, else as its weights are stored; without any float32."""
    name = fields.text("dtype", fields.text("torch_dtype", "")).removeprefix("torch.")
    name = name or stored_dtype(folder) or "float32"
    if name not in DTYPES:
        raise ModelError(f"{fields.source}: dtype {name!r} isn't served; known are {', '.join(DTYPES)}")
    return name


def _generation_defaults(generation: Fields) -> GenerationDefaults:
    top_k = generation.optional_number("top_k")
    return GenerationDefaults(
        temperature=generation.optional_number("temperature"),
        top_k=None if top_k is None else int(top_k),
        top_p=generation.optional_number("top_p"),
        min_p=generation.optional_number("min_p"),
        repetition_penalty=generation.optional_number("repetition_penalty"),
    )
