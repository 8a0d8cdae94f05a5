"""Model folders in either form of config.json say the same, and wrong ones say what is wrong."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from penstock.configs.architectures import ARCHITECTURES
from penstock.configs.model_config import GenerationDefaults, ModelConfig, read_model_config
from penstock.errors import ModelError

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 300,
    "max_position_embeddings": 8192,
    "eos_token_id": 2,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read(folder: Path, values: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelConfig:
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return read_model_config(folder)


def test_what_a_config_leaves_out_is_the_familys_default(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA)
    assert (config.num_key_value_heads, config.head_dim) == (8, 8)
    assert (config.rope.theta, config.rope.rotary_dim, config.rope.type) == (10000.0, 8, "default")
    assert (config.rms_norm_eps, config.dtype, config.tie_word_embeddings) == (1e-6, "float32", False)
    assert config.eos_token_ids == (2,)
    assert (config.attention_bias, config.attention_output_bias, config.mlp_bias) == (False, False, False)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_what_is_absent_is_what_transformers_takes(tmp_path: Path, name: str) -> None:
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    given = {key: LLAMA[key] for key in sizes} | {"num_attention_heads": 32, "use_sliding_window": True}
    theirs = getattr(import_module("transformers"), name.replace("ForCausalLM", "Config"))(**given)
    yarn = {"rope_type": "yarn", "factor": 2.0}
    ours = read(tmp_path, given | {"architectures": [name], "max_window_layers": 0, "rope_scaling": yarn})
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"):
        assert getattr(ours, key) == (getattr(theirs, key, None) or given["hidden_size"] // 32), key
    assert ours.rope.original_max_position_embeddings == theirs.max_position_embeddings
    assert ours.window_of(0) == getattr(theirs, "sliding_window", None)


def test_null_is_no_window_and_no_grouping_of_heads(tmp_path: Path) -> None:
    nulls = {"architectures": ["MistralForCausalLM"], "sliding_window": None, "num_key_value_heads": None}
    config = read(tmp_path, LLAMA | nulls)
    assert (config.window_of(0), config.num_key_value_heads) == (None, 8)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_older_and_the_newer_form_say_the_same(tmp_path: Path, name: str) -> None:
    common = LLAMA | {"architectures": [name], "head_dim": 16, "num_key_value_heads": 2}
    old = common | {"rope_theta": 5e5, "rope_scaling": {"type": "llama3"} | LLAMA3_SCALING, "torch_dtype": "bfloat16"}
    new = common | {
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5} | LLAMA3_SCALING,
        "dtype": "bfloat16",
    }
    config = read(tmp_path, old)
    assert config == read(tmp_path, new)
    assert (config.rope.type, config.rope.theta, config.rope.factor, config.dtype) == ("llama3", 5e5, 8.0, "bfloat16")


@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_a_scaling_added_to_the_newer_form_scales_what_that_has(tmp_path: Path, kind: str) -> None:
    scaling = {kind: "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
    plain = {"rope_type": "default", "rope_theta": 1e6}
    scaled = plain | scaling | {"rope_type": "yarn"}
    alone = read(tmp_path, LLAMA | {"rope_theta": 1e6, "rope_scaling": scaling})
    assert alone.rope.type == "yarn"
    assert read(tmp_path, LLAMA | {"rope_parameters": plain, "rope_scaling": scaling}) == alone
    assert read(tmp_path, LLAMA | {"rope_parameters": scaled, "rope_scaling": scaling}) == alone
    theta = read(tmp_path, LLAMA | {"rope_parameters": plain, "rope_scaling": scaling | {"rope_theta": 5e5}}).rope.theta
    assert theta == 5e5
    with pytest.raises(ModelError, match=r"factor is 4.0 in rope_scaling and 2.0 in rope_parameters"):
        read(tmp_path, LLAMA | {"rope_parameters": scaled | {"factor": 2.0}, "rope_scaling": scaling})


def test_nulls_count_as_left_out(tmp_path: Path) -> None:
    nulls = dict.fromkeys(("head_dim", "rope_scaling", "sliding_window", "num_key_value_heads", "quantization_config"))
    assert read(tmp_path, LLAMA | nulls) == read(tmp_path, LLAMA)


def test_families_differ_as_their_rows_say(tmp_path: Path) -> None:
    grouped = LLAMA | {"num_key_value_heads": 2}
    qwen2 = read(tmp_path, grouped | {"architectures": ["Qwen2ForCausalLM"]})
    assert (qwen2.attention_bias, qwen2.attention_output_bias) == (True, False)
    qwen3 = read(tmp_path, grouped | {"architectures": ["Qwen3ForCausalLM"]})
    assert (qwen3.head_dim, qwen3.qk_norm) == (128, True)
    glm4 = read(tmp_path, grouped | {"architectures": ["Glm4ForCausalLM"]})
    assert (glm4.rope.rotary_dim, glm4.rope.interleaved, glm4.attention_bias) == (64, True, True)
    assert glm4.sandwich_norms
    assert glm4.fused_gate_up
    llama = read(tmp_path, LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert (llama.attention_bias, llama.attention_output_bias, llama.mlp_bias) == (True, True, True)


def test_windows_are_the_layers_that_the_family_says(tmp_path: Path) -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"], "sliding_window": 32}
    assert [read(tmp_path, mistral).window_of(layer) for layer in range(4)] == [32] * 4
    mistral["layer_types"] = ["full_attention", "sliding_attention"] * 2
    assert [read(tmp_path, mistral).window_of(layer) for layer in range(4)] == [None, 32] * 2
    qwen = mistral | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2, "max_window_layers": 3}
    del qwen["layer_types"]
    assert [read(tmp_path, qwen).window_of(layer) for layer in range(4)] == [None] * 4
    qwen["use_sliding_window"] = True
    assert [read(tmp_path, qwen).window_of(layer) for layer in range(4)] == [None, None, None, 32]
    qwen["layer_types"] = ["sliding_attention", "full_attention"] * 2
    assert [read(tmp_path, qwen).window_of(layer) for layer in range(4)] == [32, None] * 2


def test_the_generation_config_wins_on_eos_and_gives_defaults(tmp_path: Path) -> None:
    generation = {"eos_token_id": [5, 6], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "do_sample": True}
    config = read(tmp_path, LLAMA, generation)
    assert config.eos_token_ids == (5, 6)
    assert config.generation_defaults == GenerationDefaults(temperature=0.6, top_k=20, top_p=0.95)
    assert read(tmp_path, LLAMA | {"eos_token_id": [3, 4]}, {}).eos_token_ids == (3, 4)


def test_only_ids_of_the_vocabulary_end_an_answer(tmp_path: Path) -> None:
    config = read(tmp_path, LLAMA | {"eos_token_id": [2, LLAMA["vocab_size"]]})
    assert (config.ending_ids(None), config.ending_ids(5), config.ending_ids(900)) == ([2], [2, 5], [2])


@pytest.mark.parametrize(
    ("scaling", "reach"),
    [
        (None, 8192),
        ({"type": "linear", "factor": 4.0}, 32768),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}, 16384),
        ({"rope_type": "llama3"} | LLAMA3_SCALING, 8192),
    ],
)
def test_a_stretched_rotation_reaches_further(tmp_path: Path, scaling: dict[str, Any] | None, reach: int) -> None:
    assert read(tmp_path, LLAMA | {"rope_scaling": scaling}).max_model_len == reach


def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    read(tmp_path, LLAMA | {"auto_map": auto_map})
    with pytest.raises(ModelError, match="OwnForCausalLM"):
        read(tmp_path, LLAMA | {"auto_map": auto_map, "architectures": ["OwnForCausalLM"]})
    assert not (tmp_path / "ran").exists()


def test_a_folder_that_is_not_there_or_has_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such model folder: .*nowhere"):
        read_model_config(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"has no config\.json"):
        read_model_config(tmp_path)


def test_an_unknown_architecture_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*LlamaForCausalLM.*Glm4ForCausalLM"):
        read(tmp_path, LLAMA | {"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(ModelError, match="none named"):
        read(tmp_path, {"hidden_size": 3})


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, but must be a whole number of at least 1"),
        ({"vocab_size": "300"}, "vocab_size is '300'"),
        ({"num_key_value_heads": 3}, "8 attention heads can't share 3 key/value heads"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized"),
        ({"torch_dtype": "int8"}, "dtype 'int8' isn't served; known are float32, bfloat16, float16"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'.*default, linear, llama3, yarn"),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "each layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"head_dim": 7}, "7 rotated dimensions"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1"),
        ({"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "sliding_window": 8,
          "num_key_value_heads": 2, "layer_types": ["full_attention"]}, "layer_types"),
    ],
)  # fmt: skip
def test_what_cannot_be_served_is_named_with_its_value(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(tmp_path, LLAMA | change)
