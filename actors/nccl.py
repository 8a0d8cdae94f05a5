"""NCCL: links that call it directly, and torch's process groups for collectives.

A link's send or receive is one kernel on the stream that is current, which is its lane's: no stream of its own, no
events beside the lane's, no watchdog. Through torch's process group an operation takes the host twice as long, and a
message 34 us on its way instead of 20 (LOG.md). The library is the one that torch's wheels bring and have loaded.
"""

from __future__ import annotations

import ctypes
import os
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Backend, Store

from ..errors import ConfigError

_LIBRARY = "libnccl.so.2"
_DEFAULTS = {
    "NCCL_MAX_P2P_NCHANNELS": "1",  # a waiting receive costs the products beside it 4 % so, and up to 17 % with more
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # each lane has a queue, and each group's communicator: none waits for another
}
_UNIQUE_ID_BYTES = 128
_BYTES = 0  # ncclInt8: tensors travel as bytes
_SENDER, _RECEIVER = 0, 1


class _UniqueId(ctypes.Structure):
    """ncclUniqueId, which is passed by value."""

    _fields_ = [("internal", ctypes.c_byte * _UNIQUE_ID_BYTES)]


class NcclLink:
    """One direction between two GPUs, over a communicator of its own.

    Both ends are made at once, on the device that is current. Raises RuntimeError for whatever NCCL reports,
    ConfigError where there is no NCCL.
    """

    def __init__(self, store: Store, sends: bool) -> None:
        _set_defaults()
        self._nccl = _load()
        self._device = torch.cuda.current_device()
        self._communicator = ctypes.c_void_p()
        rank = _SENDER if sends else _RECEIVER
        unique_id = _UniqueId()
        if sends:
            self._check(self._nccl.ncclGetUniqueId(ctypes.byref(unique_id)))
            store.set("id", bytes(unique_id).hex())
        else:
            store.wait(["id"])
            unique_id = _UniqueId.from_buffer_copy(bytes.fromhex(store.get("id").decode()))
        self._check(self._nccl.ncclCommInitRank(ctypes.byref(self._communicator), 2, unique_id, rank))
        self._connect(sends)

    def send(self, tensor: torch.Tensor) -> None:
        """Enqueues the send on the current stream; the buffer may be written again behind it."""
        assert tensor.is_contiguous()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._check(
            self._nccl.ncclSend(tensor.data_ptr(), tensor.nbytes, _BYTES, _RECEIVER, self._communicator, stream)
        )

    def receive(self, buffer: torch.Tensor) -> None:
        """Enqueues the receive on the current stream."""
        assert buffer.is_contiguous()
        stream = torch.cuda.current_stream(self._device).cuda_stream
        self._check(self._nccl.ncclRecv(buffer.data_ptr(), buffer.nbytes, _BYTES, _SENDER, self._communicator, stream))

    def close(self) -> None:
        """Gives the communicator up. Nothing may wait on this device, and no other thread be in here: NCCL frees its
        memory, for which CUDA may wait until the whole device is idle. Workers are killed instead.
        """
        if self._communicator:
            self._nccl.ncclCommAbort(self._communicator)
            self._communicator = ctypes.c_void_p()

    def _connect(self, sends: bool) -> None:
        """NCCL connects two ends as they first speak: before the stage is ready, and by both at once."""
        (self.send if sends else self.receive)(torch.zeros(1, device="cuda"))
        torch.cuda.synchronize()

    def _check(self, status: int) -> None:
        if status:
            reason = self._nccl.ncclGetErrorString(status).decode()
            detail = self._nccl.ncclGetLastError(self._communicator or None) or b""
            raise RuntimeError(f"NCCL: {reason} {detail.decode(errors='replace')}".strip())


def nccl_group(store: Store, rank: int, size: int, timeout: timedelta) -> Backend:
    """A process group; its communicator is made at its first use, which must be on all ranks at once."""
    from torch._C._distributed_c10d import ProcessGroupNCCL

    _set_defaults()
    options: Any = ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, size, options)


def _set_defaults() -> None:
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def _load() -> ctypes.CDLL:
    """The functions that a link needs, with their types."""
    try:
        nccl = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise ConfigError(
            f"several stages on GPUs need {_LIBRARY}, which torch brings along for CUDA: {error}"
        ) from None
    transfer: list[Any] = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    nccl.ncclSend.argtypes = nccl.ncclRecv.argtypes = transfer
    nccl.ncclGetUniqueId.argtypes = [ctypes.POINTER(_UniqueId)]
    nccl.ncclCommInitRank.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, _UniqueId, ctypes.c_int]
    nccl.ncclCommAbort.argtypes = [ctypes.c_void_p]
    nccl.ncclGetErrorString.argtypes, nccl.ncclGetErrorString.restype = [ctypes.c_int], ctypes.c_char_p
    nccl.ncclGetLastError.argtypes, nccl.ncclGetLastError.restype = [ctypes.c_void_p], ctypes.c_char_p
    return nccl
