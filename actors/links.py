"""Ways for tensors: between ranks of different processes over gloo or NCCL, and queues between threads of one.

Every edge is made by itself from a store that lives outside the stages, under `epoch/edge`, with no world group: a
survivor can rebuild an edge by naming the next epoch. gloo or NCCL is chosen in `LinkRoom` alone.
A gloo wait has no time-out, since one that runs out closes the pair for good: who is dead is decided by heartbeats.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from datetime import timedelta
from queue import SimpleQueue
from typing import Any

import torch
from torch._C._distributed_c10d import Backend, PrefixStore, ProcessGroupGloo, Store, TCPStore

from ..model.tensor_parallel import ProcessGroupTensorParallel, TensorParallel
from ..scheduler.device import Link
from .engine_spec import START_TIMEOUT_S, StoreAddress

_NO_TIMEOUT = timedelta(days=365)


def open_store(host: str) -> TCPStore:
    """Hosts the links' store in this process, reachable at this address only. The result must be kept alive."""
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = listener.getsockname()[1]
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, timeout=_NO_TIMEOUT, master_listen_fd=listener.detach()
    )


class LinkRoom:
    """Makes the links of one rank, in one epoch."""

    def __init__(self, address: StoreAddress, host: str, device: str, epoch: int, timeout_s: float) -> None:
        self._store = TCPStore(address.host, address.port, is_master=False, timeout=timedelta(seconds=timeout_s))
        self._host = host
        self._device = device
        self._epoch = epoch

    def sending(self, edge: str) -> Link:
        """The end of an edge that sends."""
        return self._link(edge, sends=True)

    def receiving(self, edge: str) -> Link:
        """The end of an edge that receives."""
        return self._link(edge, sends=False)

    def collectives(self, edge: str, rank: int, size: int) -> TensorParallel:
        """A stage's ranks; waits for the others, and raises when they don't come within the room's time-out."""
        store = self._meet(edge, rank, size)
        if self._device == "cuda":
            from .nccl import NcclTensorParallel

            return NcclTensorParallel(store, rank, size)
        return ProcessGroupTensorParallel(_gloo_group(store, rank, size, self._host))

    def least(self, what: str, number: int, who: str, everybody: Sequence[str]) -> int:
        """The smallest of the numbers that everybody names under `what`.

        Waits for them as long as weights may load; raises DistStoreError when they don't come.
        """
        store = PrefixStore(f"{self._epoch}/{what}", self._store)
        store.set(who, str(number))
        store.wait(list(everybody), timedelta(seconds=START_TIMEOUT_S))
        return min(int(store.get(other)) for other in everybody)

    def _link(self, edge: str, sends: bool) -> Link:
        rank = 0 if sends else 1
        store = self._meet(edge, rank, 2)
        if self._device == "cuda":
            from .nccl import NcclLink

            return NcclLink(store, sends)
        return GroupLink(_gloo_group(store, rank, 2, self._host))

    def _meet(self, edge: str, rank: int, size: int) -> Store:
        """The edge's own store, once all of its ranks are there: the time-out of what is made then is not for that."""
        store = PrefixStore(f"{self._epoch}/{edge}", self._store)
        store.set(f"here{rank}", "")
        store.wait([f"here{other}" for other in range(size)])
        return store


class GroupLink:
    """One direction over a two-rank gloo group: rank 0 sends, rank 1 receives."""

    def __init__(self, group: Backend) -> None:
        self._group = group

    def send(self, tensor: torch.Tensor) -> None:
        """Sends to the other rank; back when the buffer may be reused."""
        self._group.send([tensor], 1, 0).wait()  # type: ignore[attr-defined]

    def receive(self, buffer: torch.Tensor) -> None:
        """Receives from the other rank; back when the data is there."""
        self._group.recv([buffer], 0, 0).wait()  # type: ignore[attr-defined]

    def close(self) -> None:
        """Gives the group up. A wait in another thread ends only with the other process; then it raises."""
        self._group.abort()


def _gloo_group(store: Store, rank: int, size: int, host: str) -> Backend:
    options: Any = ProcessGroupGloo._Options()  # type: ignore[attr-defined]  # the stub says Options
    options._devices = [ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = _NO_TIMEOUT
    return ProcessGroupGloo(store, rank, size, options)


class LinkClosedError(RuntimeError):
    """A thread link was closed while somebody used it."""


class ThreadLink:
    """One direction between two threads of a process; both hold the same object."""

    def __init__(self) -> None:
        self._tensors: SimpleQueue[tuple[torch.Tensor, torch.cuda.Event | None] | None] = SimpleQueue()
        self._closed = False

    def send(self, tensor: torch.Tensor) -> None:
        """Queues a copy, so that the buffer may be reused at once; on a GPU the copy is enqueued on this stream."""
        if self._closed:
            raise LinkClosedError("the link is closed")
        copied = tensor.clone()
        self._tensors.put((copied, torch.cuda.current_stream().record_event() if copied.is_cuda else None))

    def receive(self, buffer: torch.Tensor) -> None:
        """Waits for the next tensor and copies it into the buffer; both have the same shape and type."""
        item = self._tensors.get()
        if item is None:
            self._tensors.put(None)
            raise LinkClosedError("the link is closed")
        tensor, copied = item
        if copied is not None:
            torch.cuda.current_stream().wait_event(copied)
            tensor.record_stream(torch.cuda.current_stream())
        if tensor.shape != buffer.shape or tensor.dtype != buffer.dtype:
            raise ValueError(f"received {tensor.dtype} {tuple(tensor.shape)} for {buffer.dtype} {tuple(buffer.shape)}")
        buffer.copy_(tensor)

    def close(self) -> None:
        """Ends the link; a `receive` that waits raises, and so does every later call once the queue is empty."""
        self._closed = True
        self._tensors.put(None)
