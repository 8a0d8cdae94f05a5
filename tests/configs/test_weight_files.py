"""What is read of weights without reading them: their type, and which file holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penstock.configs.weight_files import INDEX, WHOLE, sharded, stored_dtype
from penstock.errors import ModelError

from .test_model_config import LLAMA, read


def write(path: Path, *types: str) -> None:
    """A file whose header names a tensor of each type; there are no tensors behind it."""
    header = {"__metadata__": {"format": "pt"}} | {f"t{at}": {"dtype": name} for at, name in enumerate(types)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def test_a_config_without_a_dtype_gets_that_of_the_weights(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA).dtype == "float32"
    write(tmp_path / WHOLE, "I64", "BF16", "F32")
    assert read(tmp_path, LLAMA).dtype == "bfloat16"
    assert read(tmp_path, LLAMA | {"dtype": "float16"}).dtype == "float16"
    write(tmp_path / WHOLE, "F64")
    with pytest.raises(ModelError, match="float64"):
        read(tmp_path, LLAMA)


def test_of_shards_the_first_says_it_and_one_file_goes_before_an_index(tmp_path: Path) -> None:
    shards = {"b": "2.safetensors", "a": "1.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": shards}))
    assert (sharded(tmp_path), stored_dtype(tmp_path)) == (shards, None)
    write(tmp_path / "1.safetensors", "F16")
    assert stored_dtype(tmp_path) == "float16"
    write(tmp_path / WHOLE, "BF16")
    assert (sharded(tmp_path), stored_dtype(tmp_path)) == (None, "bfloat16")


@pytest.mark.parametrize("content", [b"", b"\x02" + bytes(7) + b"[]", b"\xff" * 12, bytes(8) + b"{}"])
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / WHOLE).write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        stored_dtype(tmp_path)
