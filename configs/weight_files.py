"""Where a model folder has its weights, and their type, as the files' headers say: JSON, read without the tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..errors import ModelError
from .json_fields import Fields

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # what safetensors itself reads
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def sharded(folder: Path) -> dict[str, str] | None:
    """The shard of each tensor, as an index says; None where one file, or none, holds all.

    An index beside `model.safetensors` is left from shards that it replaced, since transformers doesn't delete it.
    """
    if (folder / WHOLE).is_file() or not (folder / INDEX).is_file():
        return None
    weight_map = Fields.read(folder / INDEX).inner("weight_map").values
    return {str(name): str(file) for name, file in weight_map.items()}


def stored_dtype(folder: Path) -> str | None:
    """The type of the first floating tensor of the first file; None without such a file. Raises ModelError."""
    files = sorted(set((sharded(folder) or {}).values())) or [WHOLE]
    path = folder / files[0]
    if path.name != files[0] or not path.is_file():
        return None  # which the loader complains about
    types = [tensor.get("dtype") for name, tensor in _header(path).items() if name != "__metadata__"]
    return next((_DTYPES[name] for name in types if name in _DTYPES), None)


def _header(path: Path) -> Mapping[str, dict[str, object]]:
    try:
        with path.open("rb") as file:
            num_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(num_bytes, _MAX_HEADER_BYTES)))
    except (OSError, ValueError) as error:
        raise ModelError(f"the header of {path} can't be read: {error}") from None
    if not isinstance(header, dict) or not all(isinstance(each, dict) for each in header.values()):
        raise ModelError(f"the header of {path} is no list of tensors")
    return header
