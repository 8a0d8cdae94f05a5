"""Tensor parallelism inside a stage: the collectives that sharded layers need, behind a small Protocol.

Every rank of a stage calls the same collectives in the same order, and all ranks get equal results, so that they stay
in step without further talk.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._C._distributed_c10d import AllreduceOptions, ReduceOp

from ..errors import ConfigError

_MAGNITUDE = 0x7FFFFFFF  # of a float32's bits
_LAST_ID = 0xFFFFFFFF


class TensorParallel(Protocol):
    """A rank's view of its group."""

    rank: int
    size: int

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks; may reuse the tensor's memory."""
        ...

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The largest of the ranks' elements; may reuse the tensor's memory."""
        ...

    def all_gather_last(self, tensor: Tensor) -> Tensor:
        """The ranks' tensors side by side along the last dimension, in rank order."""
        ...


class NoTensorParallel:
    """One rank alone."""

    rank = 0
    size = 1

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_gather_last(self, tensor: Tensor) -> Tensor:
        return tensor


class ThreadTensorParallel:
    """Ranks as threads of one process; sums are formed in rank order, so that they are equal on every rank."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[Tensor | None]) -> None:
        self.rank = rank
        self.size = len(slots)
        self._barrier = barrier
        self._slots = slots

    @classmethod
    def group(cls, size: int) -> list[ThreadTensorParallel]:
        """The ranks of a new group. A thread that fails should `abort`, or the others wait for it."""
        barrier = threading.Barrier(size)
        slots: list[Tensor | None] = [None] * size
        return [cls(rank, barrier, slots) for rank in range(size)]

    def abort(self) -> None:
        """Ends the group: ranks that wait, and those that come, raise BrokenBarrierError."""
        self._barrier.abort()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        return self._reduce(tensor, torch.add)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        return self._reduce(tensor, torch.maximum)

    def all_gather_last(self, tensor: Tensor) -> Tensor:
        gathered = torch.cat(self._exchange(tensor), dim=-1)
        self._barrier.wait()
        return gathered

    def _reduce(self, tensor: Tensor, join: Callable[..., Tensor]) -> Tensor:
        shares = self._exchange(tensor)
        total = shares[0].clone()
        for share in shares[1:]:
            join(total, share, out=total)
        self._barrier.wait()  # nobody reuses its tensor while another still takes it in
        return total

    def _exchange(self, tensor: Tensor) -> list[Tensor]:
        self._slots[self.rank] = tensor
        self._barrier.wait()
        return [slot for slot in self._slots if slot is not None]


class ProcessGroupTensorParallel:
    """Ranks as processes, over a process group object of torch (gloo's class; no world group is needed)."""

    def __init__(self, group: Any) -> None:
        self.rank: int = group.rank()
        self.size: int = group.size()
        self._group = group

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._group.allreduce([tensor]).wait()
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        options = AllreduceOptions()
        options.reduceOp = ReduceOp.MAX  # type: ignore[assignment]
        self._group.allreduce([tensor], options).wait()
        return tensor

    def all_gather_last(self, tensor: Tensor) -> Tensor:
        shares = [torch.empty_like(tensor) for _ in range(self.size)]
        self._group.allgather([shares], [tensor.contiguous()]).wait()
        return torch.cat(shares, dim=-1)


def likeliest_of_ranks(tp: TensorParallel, values: Tensor, ids: Tensor) -> Tensor:
    """Of each rank's best value [R] and its id [R] int64, the id of the largest on every rank; of equals the lowest.

    One maximum over 64 bit numbers: above, the value's bits in an order that integers have, below, the id, turned over.
    """
    bits = (values.float() + 0.0).view(torch.int32).to(torch.int64)  # -0.0 and 0.0 are equals
    ordered = torch.where(bits < 0, bits ^ _MAGNITUDE, bits)
    return _LAST_ID - (tp.all_reduce_max((ordered << 32) | (_LAST_ID - ids)) & _LAST_ID)


def shard(what: str, count: int, tp_size: int) -> int:
    """A rank's share of `count`. Raises ConfigError, naming both numbers, when it isn't whole."""
    if count % tp_size:
        raise ConfigError(f"tensor_parallel_size {tp_size} doesn't divide the model's {count} {what}")
    return count // tp_size


def kv_heads_per_rank(num_key_value_heads: int, tp_size: int) -> int:
    """Key/value heads of a rank; with more ranks than heads each head is held by several ranks."""
    if tp_size > num_key_value_heads:
        if tp_size % num_key_value_heads:
            raise ConfigError(
                f"tensor_parallel_size {tp_size} is no multiple of the model's {num_key_value_heads} key/value heads"
            )
        return 1
    return shard("key/value heads", num_key_value_heads, tp_size)


def padded_vocab_per_rank(vocab_size: int, tp_size: int) -> int:
    """Vocabulary rows of a rank; the last rank's rows beyond the vocabulary are padding."""
    return -(-vocab_size // tp_size)
