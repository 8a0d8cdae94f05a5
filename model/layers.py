"""The building blocks of a decoder, sharded over the ranks of a stage.

Column parallel: a rank holds some outputs, nothing is exchanged. Row parallel: a rank holds some inputs, and the
partial results are summed. Parameters are plain tensors without gradients; the loader fills them and then calls
`finish` on every layer, which hands them to its kernel. The kernel may keep a packed copy: the parameter is let go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import GatedKernel, Kernels, LinearKernel, make_kernels
from .tensor_parallel import TensorParallel, likeliest_of_ranks


@dataclass(slots=True, frozen=True)
class Place:
    """Where weights live, in which type, and which functions work on them."""

    dtype: torch.dtype
    device: torch.device | str
    kernels: Kernels

    @classmethod
    def of(cls, dtype: torch.dtype, device: torch.device | str) -> Place:
        """With the kernels that the device provides."""
        return cls(dtype, device, make_kernels(device, dtype))

    def empty(self, *shape: int) -> nn.Parameter:
        """A weight that the loader has yet to fill."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device), requires_grad=False)


class _Weighted(nn.Module):
    """A weight [outputs, inputs], perhaps a bias [outputs], and a kernel over both once they are filled."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: bool, place: Place) -> None:
        super().__init__()
        self.weight = weight
        self.bias = place.empty(len(weight)) if bias else None
        self.kernels = place.kernels

    def _take_weight(self) -> Tensor:
        weight = self.weight
        assert weight is not None, "finish is called once"
        self.weight = None
        return weight


class Linear(_Weighted):
    """y = x Wᵀ + b. As a column-parallel layer it simply is a rank's share of the outputs."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool, place: Place) -> None:
        super().__init__(place.empty(num_outputs, num_inputs), bias, place)
        self.kernel: LinearKernel | None = None

    def finish(self) -> None:
        self.kernel = self.kernels.linear(self._take_weight(), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        assert self.kernel is not None, "weights are loaded first"
        return self.kernel(x)


class GatedLinear(_Weighted):
    """silu(gate(x)) * up(x), gate's outputs and up's being one weight; column parallel."""

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool, place: Place) -> None:
        super().__init__(place.empty(2 * num_outputs, num_inputs), bias, place)
        self.kernel: GatedKernel | None = None

    def finish(self) -> None:
        self.kernel = self.kernels.gated(self._take_weight(), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        assert self.kernel is not None, "weights are loaded first"
        return self.kernel(x)


class ResidualLinear(_Weighted):
    """The end of a branch: residual + (sum over ranks of x_r W_rᵀ) + b; row parallel.

    Residual and bias are in the first rank's share, so that they cost no pass of their own.
    """

    def __init__(self, num_inputs: int, num_outputs: int, bias: bool, place: Place, tp: TensorParallel) -> None:
        super().__init__(place.empty(num_outputs, num_inputs), bias, place)
        self.tp = tp
        self.kernel: LinearKernel | None = None

    def finish(self) -> None:
        self.kernel = self.kernels.linear(self._take_weight(), self.bias if self.tp.rank == 0 else None)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        assert self.kernel is not None, "weights are loaded first"
        return self.tp.all_reduce(self.kernel(x, residual if self.tp.rank == 0 else None))


class RMSNorm(nn.Module):
    """Root mean square normalisation over the last dimension (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float, place: Place) -> None:
        super().__init__()
        self.weight = place.empty(size)
        self.eps = eps
        self.rms_norm = place.kernels.rms_norm

    def forward(self, x: Tensor) -> Tensor:
        return self.rms_norm(x, self.weight, self.eps)


class VocabEmbedding(nn.Module):
    """Rows of the vocabulary, a rank holding a range of them; other ranks' tokens count as zero and are summed in."""

    def __init__(self, rows_per_rank: int, hidden_size: int, place: Place, tp: TensorParallel) -> None:
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


class VocabHead(_Weighted):
    """Logits over the vocabulary, each rank computing a range of it; every rank gets them all.

    Its weight is [rows of the rank, hidden], the embedding's own parameter when they are tied.
    """

    def __init__(self, weight: nn.Parameter, vocab_size: int, place: Place, tp: TensorParallel) -> None:
        super().__init__(weight, False, place)
        self.vocab_size = vocab_size
        self.tp = tp
        self.kernel: LinearKernel | None = None

    def finish(self) -> None:
        self.kernel = self.kernels.linear(self._take_weight(), None)

    def forward(self, hidden: Tensor) -> Tensor:
        assert self.kernel is not None, "weights are loaded first"
        logits = self.tp.all_gather_last(self.kernel(hidden))[..., : self.vocab_size]
        return logits.float().contiguous()  # the sampler addresses it flat

    def likeliest(self, hidden: Tensor, largest: Callable[[Tensor], Tensor]) -> Tensor:
        """The likeliest token of each row [R], by argmax over the logits in the weights' own type: a third of the
        traffic, and between ranks almost none. `largest` is argmax over the last dimension of [R, V].
        """
        assert self.kernel is not None, "weights are loaded first"
        logits, rank, size = self.kernel(hidden), self.tp.rank, self.tp.size
        if size == 1:
            return largest(logits)
        first = rank * logits.shape[-1]
        count = self.vocab_size - first
        ids = largest(logits[:, : max(1, count)])
        values = logits.gather(1, ids.unsqueeze(1)).squeeze(1)
        if count <= 0:  # a rank of padding alone
            values.fill_(-math.inf)
        return likeliest_of_ranks(self.tp, values, ids + first)
