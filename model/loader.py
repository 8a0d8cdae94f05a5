"""Fills a stage's parameters: from safetensors files, of which only the rank's own slices are read, or at random.

Weights in pickle form (*.bin, *.pt) are refused: unpickling runs code. Every parameter must be filled completely;
what the checkpoint holds beyond that is ignored.
"""

from __future__ import annotations

import hashlib
import math
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..configs.model_config import ModelConfig
from ..configs.weight_files import INDEX, WHOLE, sharded
from ..errors import ModelError
from .decoder import StageModule
from .layer_span import LayerSpan
from .weight_map import EMBEDDING, HEAD, Part, Piece, stage_weights

_RANDOM_ROWS = 1024  # rows that share one random stream
_ROWS_AT_ONCE = 2 * _RANDOM_ROWS  # copied together, so that little lies in memory twice


class WeightSource(Protocol):
    """Where pieces come from."""

    def read(self, piece: Piece) -> Tensor:
        """The piece's part of its tensor, in any floating type."""
        ...


def load_weights(
    module: StageModule, folder: str | Path, config: ModelConfig, span: LayerSpan, tp_rank: int, tp_size: int
) -> None:
    """Fills the module from a model folder.

    Raises ModelError, naming tensor and file: no safetensors, a missing or truncated file, a missing tensor, one of an
    unexpected shape, a head of its own where config.json says that the embedding is the head.
    """
    pieces = stage_weights(config, span, tp_rank, tp_size)
    with SafetensorsFolder(Path(folder)) as source:
        if config.tie_word_embeddings and span.ends_with(config.num_hidden_layers) and source.has(HEAD):
            _check_head(source, pieces)
        _fill(module, source, pieces)
    module.finish()


def dummy_weights(module: StageModule, config: ModelConfig, seed: int) -> None:
    """Fills the module at random. The whole model's weights are the same at any partition and tensor_parallel_size."""
    device = next(module.parameters()).device
    _fill(module, RandomWeights(seed, device), stage_weights(config, module.span, module.tp.rank, module.tp.size))
    module.finish()


def _check_head(source: SafetensorsFolder, pieces: list[Piece]) -> None:
    """Raises ModelError where the head that is stored isn't a copy of the embedding, in the rank's own rows."""
    for whole in (piece for piece in pieces if piece.tensor == EMBEDDING):
        for piece in whole.cut(_ROWS_AT_ONCE):
            embedding, head = source.read(piece), source.read(replace(piece, tensor=HEAD))
            if not torch.equal(head.to(embedding.dtype), embedding):
                raise ModelError(
                    f"{source.folder} holds a {HEAD} that differs from {EMBEDDING}, but its config.json says "
                    "tie_word_embeddings true, which makes the embedding the head: set it to false to use the head"
                )


@torch.no_grad()
def _fill(module: StageModule, source: WeightSource, pieces: list[Piece]) -> None:
    parameters = dict(module.named_parameters())
    missing = {name: parameter.numel() for name, parameter in parameters.items()}
    for piece in chain.from_iterable(whole.cut(_ROWS_AT_ONCE) for whole in pieces):
        target = parameters[piece.parameter][piece.into]
        target.copy_(source.read(piece) if piece.tensor else torch.zeros(()))
        missing[piece.parameter] -= target.numel()
    for name, count in missing.items():
        if count:
            raise ModelError(f"nothing fills {count} of the {parameters[name].numel()} values of {name}")


class SafetensorsFolder:
    """The safetensors of a model folder: one file, or shards with an index. Files open when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._exits = ExitStack()
        self._files = self._index()  # tensor name -> file name; None: all in one file

    def __enter__(self) -> SafetensorsFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def has(self, tensor: str) -> bool:
        return tensor in (self._opened(WHOLE).keys() if self._files is None else self._files)

    def read(self, piece: Piece) -> Tensor:
        file = self._file_of(piece.tensor)
        try:
            tensor = self._opened(file).get_slice(piece.tensor)
            shape = tuple(tensor.get_shape())
            if shape != piece.shape:
                raise ModelError(f"tensor {piece.tensor} in {file} has shape {shape}, expected {piece.shape}")
            values: Tensor = tensor[piece.part]
        except SafetensorError as error:
            raise ModelError(f"tensor {piece.tensor} can't be read from {self.folder / file}: {error}") from error
        if not values.is_floating_point():
            raise ModelError(f"tensor {piece.tensor} in {file} is of type {values.dtype}, expected floating point")
        return values

    def _index(self) -> dict[str, str] | None:
        shards = sharded(self.folder)
        if shards is not None or (self.folder / WHOLE).is_file():
            return shards
        pickles = sorted(p.name for p in self.folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise ModelError(
                f"model folder {self.folder} holds pickle weights only ({pickles[0]}), which are never loaded because "
                f"unpickling runs code: convert them to safetensors"
            )
        raise ModelError(f"model folder {self.folder} has neither {WHOLE} nor {INDEX}")

    def _file_of(self, tensor: str) -> str:
        if self._files is None:
            return WHOLE
        if tensor not in self._files:
            raise ModelError(f"tensor {tensor} is missing from {self.folder / INDEX}")
        return self._files[tensor]

    def _opened(self, file: str) -> Any:
        if file not in self._open:
            path = self.folder / file
            if path.name != file:
                raise ModelError(f"the index of {self.folder} names {file!r}, which is no file of the folder")
            if not path.is_file():
                raise ModelError(f"weights file {path} is missing, though the index names it")
            try:
                self._open[file] = self._exits.enter_context(safe_open(path, framework="pt"))
            except SafetensorError as error:
                raise ModelError(f"weights file {path} can't be read: {error}") from error
        return self._open[file]


class RandomWeights:
    """Weights from a seed: a value depends on the seed, its tensor's name, its place and the kind of device alone.

    Scaled so that activations keep their size and near-ties of logits are rare: matrices have a standard deviation of
    2 / sqrt(inputs), norms lie around 1, biases around 0.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = device

    def read(self, piece: Piece) -> Tensor:
        rows = piece.part[0]
        first, last = rows.start, rows.stop
        blocks = [self._block(piece, b) for b in range(first // _RANDOM_ROWS, -(-last // _RANDOM_ROWS))]
        offset = first // _RANDOM_ROWS * _RANDOM_ROWS
        part: Part = (slice(first - offset, last - offset), *piece.part[1:])
        return torch.cat(blocks)[part]

    def _block(self, piece: Piece, block: int) -> Tensor:
        """Rows block * _RANDOM_ROWS and on, of the whole tensor's width."""
        key = f"{self.seed}/{piece.tensor}/{block}".encode()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
        rows = min(_RANDOM_ROWS, piece.shape[0] - block * _RANDOM_ROWS)
        noise = torch.empty(rows, *piece.shape[1:], device=self.device).uniform_(-1, 1, generator=generator)
        if len(piece.shape) == 2:
            return noise * (2 * math.sqrt(3 / piece.shape[1]))
        return noise * 0.1 + (0.0 if piece.tensor.endswith(".bias") else 1.0)
