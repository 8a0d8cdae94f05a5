"""NCCL, called directly: links between stages, and the collectives of a stage's ranks.

Whatever is enqueued is one kernel on the stream that is current: no stream of its own, no events, no watchdog, and a
CUDA graph can hold it. Through torch's process group an operation takes the host twice as long, and a message 34 us on
its way instead of 20 (LOG.md). The library is the one that torch's wheels bring and have loaded.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from ..errors import ConfigError

_LIBRARY = "libnccl.so.2"
_DEFAULTS = {
    "NCCL_MAX_P2P_NCHANNELS": "1",  # a waiting receive costs the products beside it 4 % so, and up to 17 % with more
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # each lane has a queue, and each group's communicator: none waits for another
    "NCCL_GRAPH_MIXING_SUPPORT": "0",  # a communicator's work is in the order of one stream, in graphs and between them
}
_UNIQUE_ID_BYTES = 128
_BYTES = 0  # ncclInt8: what is only moved travels as bytes
_TYPES = {torch.int64: 4, torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
_SUM, _MAX = 0, 2
_SENDER, _RECEIVER = 0, 1


class _UniqueId(ctypes.Structure):
    """ncclUniqueId, which is passed by value."""

    _fields_ = [("internal", ctypes.c_byte * _UNIQUE_ID_BYTES)]


class Communicator:
    """NCCL's, over some GPUs of one process each.

    All ranks make it at once, on the device that is current. Everything raises RuntimeError for whatever NCCL reports,
    the constructor ConfigError where there is no NCCL.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        for name, value in _DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._nccl = _load()
        self._device = torch.cuda.current_device()
        self._handle = ctypes.c_void_p()
        unique_id = _UniqueId()
        if rank == 0:
            self._check(self._nccl.ncclGetUniqueId(ctypes.byref(unique_id)))
            store.set("id", bytes(unique_id).hex())
        else:
            store.wait(["id"])
            unique_id = _UniqueId.from_buffer_copy(bytes.fromhex(store.get("id").decode()))
        self._check(self._nccl.ncclCommInitRank(ctypes.byref(self._handle), size, unique_id, rank))

    def send(self, tensor: Tensor, peer: int) -> None:
        """Enqueues the send on the current stream; the buffer may be written again behind it."""
        assert tensor.is_contiguous()
        self._check(self._nccl.ncclSend(tensor.data_ptr(), tensor.nbytes, _BYTES, peer, self._handle, self._stream()))

    def receive(self, buffer: Tensor, peer: int) -> None:
        """Enqueues the receive on the current stream."""
        assert buffer.is_contiguous()
        self._check(self._nccl.ncclRecv(buffer.data_ptr(), buffer.nbytes, _BYTES, peer, self._handle, self._stream()))

    def all_reduce(self, tensor: Tensor, maximum: bool = False) -> None:
        """Enqueues the sum over all ranks, or the maximum, in place."""
        assert tensor.is_contiguous()
        where, how = tensor.data_ptr(), (_TYPES[tensor.dtype], _MAX if maximum else _SUM)
        self._check(self._nccl.ncclAllReduce(where, where, tensor.numel(), *how, self._handle, self._stream()))

    def all_gather(self, gathered: Tensor, share: Tensor) -> None:
        """Enqueues the exchange of equal shares, which lie in `gathered` by rank."""
        assert gathered.is_contiguous()
        assert share.is_contiguous()
        self._check(
            self._nccl.ncclAllGather(
                share.data_ptr(), gathered.data_ptr(), share.nbytes, _BYTES, self._handle, self._stream()
            )
        )

    def close(self) -> None:
        """Gives the communicator up. Nothing may wait on this device, and no other thread be in here: NCCL frees its
        memory, for which CUDA may wait until the whole device is idle. Workers are killed instead.
        """
        if self._handle:
            self._nccl.ncclCommAbort(self._handle)
            self._handle = ctypes.c_void_p()

    def _stream(self) -> int:
        return torch.cuda.current_stream(self._device).cuda_stream

    def _check(self, status: int) -> None:
        if status:
            reason = self._nccl.ncclGetErrorString(status).decode()
            detail = self._nccl.ncclGetLastError(self._handle or None) or b""
            raise RuntimeError(f"NCCL: {reason} {detail.decode(errors='replace')}".strip())


class NcclLink:
    """One direction between two GPUs, over a communicator of its own; both ends are made at once."""

    def __init__(self, store: Store, sends: bool) -> None:
        self._communicator = Communicator(store, _SENDER if sends else _RECEIVER, 2)
        # NCCL connects two ends as they first speak: before the stage is ready, and by both at once.
        (self.send if sends else self.receive)(torch.zeros(1, device="cuda"))
        torch.cuda.synchronize()

    def send(self, tensor: Tensor) -> None:
        """See `Communicator.send`."""
        self._communicator.send(tensor, _RECEIVER)

    def receive(self, buffer: Tensor) -> None:
        """See `Communicator.receive`."""
        self._communicator.receive(buffer, _SENDER)

    def close(self) -> None:
        """See `Communicator.close`."""
        self._communicator.close()


class NcclTensorParallel:
    """A stage's ranks, one to a GPU; all of them are made at once."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._communicator = Communicator(store, rank, size)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """See `TensorParallel`."""
        self._communicator.all_reduce(tensor)
        return tensor

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """See `TensorParallel`."""
        self._communicator.all_reduce(tensor, maximum=True)
        return tensor

    def all_gather_last(self, tensor: Tensor) -> Tensor:
        """See `TensorParallel`."""
        shares = tensor.new_empty(self.size, *tensor.shape)
        self._communicator.all_gather(shares, tensor.contiguous())
        return torch.cat(shares.unbind(), dim=-1)


def _load() -> ctypes.CDLL:
    """The functions that are used here, with their types."""
    try:
        nccl = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ConfigError(
            f"several ranks on GPUs need {_LIBRARY}, which torch brings along for CUDA: {error}"
        ) from None
    pointer, size, enum = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    arguments: dict[str, list[Any]] = {
        "ncclSend": [pointer, size, enum, enum, pointer, pointer],
        "ncclRecv": [pointer, size, enum, enum, pointer, pointer],
        "ncclAllReduce": [pointer, pointer, size, enum, enum, pointer, pointer],
        "ncclAllGather": [pointer, pointer, size, enum, pointer, pointer],
        "ncclGetUniqueId": [ctypes.POINTER(_UniqueId)],
        "ncclCommInitRank": [ctypes.POINTER(pointer), enum, _UniqueId, enum],
        "ncclCommAbort": [pointer],
        "ncclGetErrorString": [enum],
        "ncclGetLastError": [pointer],
    }
    for name, types in arguments.items():
        getattr(nccl, name).argtypes = types
    nccl.ncclGetErrorString.restype = nccl.ncclGetLastError.restype = ctypes.c_char_p
    return nccl
