"""A rank reads its own slices and nothing else, and says which tensor of a damaged folder is at fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from penstock.configs.model_config import ModelConfig, read_model_config
from penstock.errors import ModelError
from penstock.model import loader
from penstock.model.decoder import build_stage_module
from penstock.model.layer_span import LayerSpan
from penstock.model.loader import RandomWeights, load_weights
from penstock.model.tensor_parallel import NoTensorParallel, ThreadTensorParallel
from penstock.model.weight_map import Piece, stage_weights
from penstock.scheduler.plan import ints

from .stages import Pipeline, Sequences, build_module, logits_by_sequence
from .tiny import write_tiny_model

torch.set_num_threads(1)

PROMPT = [ints(range(3, 30))]
STEPS = [{0: 20}, {0: 7}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path, "qwen3")
    return tmp_path


def load(folder: Path) -> ModelConfig:
    config = read_model_config(folder)
    build_module(config, LayerSpan.of(range(config.num_hidden_layers)), NoTensorParallel(), folder)
    return config


def rewrite(folder: Path, change: Any) -> None:
    """Applies a change to the folder's tensors."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_shards_with_an_index_are_read_like_one_file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    sharded = tmp_path_factory.mktemp("sharded")
    write_tiny_model(sharded, "qwen3").save_pretrained(sharded, max_shard_size="60KB")
    (sharded / "model.safetensors").unlink(missing_ok=True)
    config = read_model_config(folder)
    assert len(list(sharded.glob("*.safetensors"))) > 2
    answers = [logits_by_sequence(Pipeline(config, f, 2), Sequences(PROMPT), STEPS)[0] for f in (folder, sharded)]
    assert torch.equal(*answers)


def test_a_folder_of_shards_that_was_saved_again_as_one_file_loads(folder: Path) -> None:
    model = write_tiny_model(folder, "qwen3")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    model.save_pretrained(folder)
    assert sorted(path.name for path in folder.glob("*.safetensors*")) == [
        "model.safetensors",
        "model.safetensors.index.json",
    ]
    load(folder)


class CountingFile:
    """A safetensors file that notes what is read from it."""

    def __init__(self, file: Any, reads: dict[str, int]) -> None:
        self.file, self.reads = file, reads

    def __enter__(self) -> CountingFile:
        self.file.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.file.__exit__(*problem)

    def get_slice(self, name: str) -> Any:
        outer, inner = self, self.file.get_slice(name)

        class Slice:
            def get_shape(self) -> Any:
                return inner.get_shape()

            def __getitem__(self, part: Any) -> torch.Tensor:
                values: torch.Tensor = inner[part]
                outer.reads[name] = outer.reads.get(name, 0) + values.numel()
                return values

        return Slice()


def test_a_rank_reads_its_own_layers_and_slices_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, reads, opened = read_model_config(folder), dict[str, int](), safe_open
    monkeypatch.setattr(loader, "safe_open", lambda *a, **k: CountingFile(opened(*a, **k), reads))
    tp = ThreadTensorParallel.group(2)[1]
    span = LayerSpan.of(range(2, 4))
    module = build_stage_module(config, span, tp, dtype=torch.float32, first=False, last=False)
    size = sum(parameter.numel() for parameter in module.parameters())
    load_weights(module, folder, config, span, 1, 2)
    assert {name.split(".")[2] for name in reads} == {"2", "3"}
    assert sum(reads.values()) == size


@pytest.mark.parametrize("stages", [1, 2])
def test_a_head_of_its_own_beside_a_tied_embedding_is_refused_and_a_copy_is_not(folder: Path, stages: int) -> None:
    config, embedding = read_model_config(folder), "model.embed_tokens.weight"
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[embedding].clone()}))
    Pipeline(config, folder, stages, 2)
    rewrite(folder, lambda tensors: tensors["lm_head.weight"][-1].add_(1))
    with pytest.raises(ModelError, match=r"lm_head\.weight that differs .* tie_word_embeddings true"):
        Pipeline(config, folder, stages, 2)


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.3.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"model\.layers\.3\.mlp\.up_proj\.weight.*model\.safetensors"):
        load(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    name = "model.layers.1.self_attn.o_proj.weight"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name][:, :5].contiguous()}))
    with pytest.raises(ModelError, match=rf"{name}.*\(48, 5\).*\(48, 96\)"):
        load(folder)


def test_integers_in_place_of_weights_are_refused(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(48, dtype=torch.int32)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight.*int32"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 5, 4000, 60000])
def test_a_truncated_file_is_named(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load(folder)


def test_pickle_weights_are_refused_and_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*safetensors"):
        load(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        load(folder)


@pytest.mark.parametrize(
    ("file", "message"),
    [("gone.safetensors", "gone.safetensors is missing"), ("../model.safetensors", "no file of the folder")],
)
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder: Path, file: str, message: str) -> None:
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_an_index_without_a_tensor_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ModelError, match=r"model\.embed_tokens\.weight is missing from .*index"):
        load(folder)


def test_a_parameter_that_nothing_fills_is_an_error(folder: Path) -> None:
    config = read_model_config(folder)
    span, shorter = LayerSpan(2, 6), LayerSpan(2, 5)
    module = build_stage_module(config, span, NoTensorParallel(), dtype=torch.float32, first=False, last=False)
    with pytest.raises(ModelError, match=r"nothing fills .* of halves\.3\."):
        load_weights(module, folder, config, shorter, 0, 1)


@pytest.mark.parametrize("name", ["qwen3", "glm4"])
def test_random_weights_are_the_same_at_any_partition(name: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path, name)
    config = read_model_config(tmp_path)
    whole, *others = [
        logits_by_sequence(Pipeline(config, seed, stages, tp), Sequences(PROMPT), STEPS)[0]
        for seed, stages, tp in ((7, 1, 1), (7, 3, 1), (7, 2, 2), (8, 1, 1))
    ]
    torch.testing.assert_close(others[0], whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(others[1], whole, atol=1e-4, rtol=0)
    assert not torch.allclose(others[2], whole, atol=1e-1)


def test_a_part_of_a_random_tensor_is_that_part_of_the_whole() -> None:
    shape, everything = (2500, 6), (slice(0, 2500), slice(0, 6))
    whole = RandomWeights(1).read(Piece("", everything, "model.x", shape, everything))
    part = (slice(1000, 2100), slice(2, 5))
    assert torch.equal(RandomWeights(1).read(Piece("", part, "model.x", shape, part)), whole[part])
    assert 0.95 < whole.std() / (2 / 6**0.5) < 1.05


def test_the_ranks_pieces_together_are_the_whole_model(folder: Path) -> None:
    config = read_model_config(folder)
    seen: dict[str, torch.Tensor] = {}
    for span in LayerSpan.in_turn([3.5, 2.5]):
        for rank in range(2):
            for piece in stage_weights(config, span, rank, 2):
                if piece.tensor:
                    seen.setdefault(piece.tensor, torch.zeros(piece.shape))[piece.part] += 1
    stored = load_file(folder / "model.safetensors")
    assert {name: tuple(count.shape) for name, count in seen.items()} == {n: tuple(t.shape) for n, t in stored.items()}
    assert all(count.min() >= 1 for count in seen.values())
