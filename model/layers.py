"""The building blocks of a decoder, sharded over the ranks of a stage.

Column parallel: a rank holds some outputs, nothing is exchanged. Row parallel: a rank holds some inputs, and the
partial results are summed. Weights are plain tensors that the loader fills; there is no gradient anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .tensor_parallel import TensorParallel


@dataclass(slots=True, frozen=True)
class Placement:
    """Where and in which type weights live."""

    dtype: torch.dtype
    device: torch.device | str = "cpu"

    def empty(self, *shape: int) -> nn.Parameter:
        """A weight that the loader has yet to fill."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)


class Linear(nn.Module):
    """y = x Wᵀ + b. As a column-parallel layer it simply is a rank's share of the outputs."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool, place: Placement) -> None:
        super().__init__()
        self.weight = place.empty(num_outputs, num_inputs)
        self.bias = place.empty(num_outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """y = sum over ranks of x_r W_rᵀ, + b once."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool, place: Placement, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = place.empty(num_outputs, num_inputs)
        self.bias = place.empty(num_outputs) if bias else None
        self.tp = tp

    def forward(self, x: Tensor) -> Tensor:
        y = self.tp.all_reduce(F.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last dimension (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float, place: Placement) -> None:
        super().__init__()
        self.weight = place.empty(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class VocabEmbedding(nn.Module):
    """Rows of the vocabulary, a rank holding a range of them; other ranks' tokens count as zero and are summed in."""

    def __init__(self, rows_per_rank: int, hidden_size: int, place: Placement, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = place.empty(rows_per_rank, hidden_size)
        self.tp = tp

    def forward(self, token_ids: Tensor) -> Tensor:
        if self.tp.size == 1:
            return F.embedding(token_ids, self.weight)
        local = token_ids - self.tp.rank * len(self.weight)
        absent = (local < 0) | (local >= len(self.weight))
        rows = F.embedding(local.masked_fill(absent, 0), self.weight)
        return self.tp.all_reduce(rows.masked_fill_(absent.unsqueeze(-1), 0))


class VocabHead(nn.Module):
    """Logits over the vocabulary, each rank computing a range of it; every rank gets them all."""

    def __init__(self, weight: nn.Parameter, vocab_size: int, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = weight  # [rows of the rank, hidden]; the embedding's own when they are tied
        self.vocab_size = vocab_size
        self.tp = tp

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.tp.all_gather_last(F.linear(hidden, self.weight))
        return logits[..., : self.vocab_size].float()
