"""Host arrays on their way to the device, and device tensors on their way to the host, without a wait.

On a GPU the host side is pinned memory, so that both copies run in the stream; on a CPU both are the tensor itself.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    T = TypeVar("T", bound=DataclassInstance)
else:
    T = TypeVar("T")


def staged(array: Any, device: torch.device) -> Tensor:
    """The NumPy array as a tensor that `upload` can copy without blocking."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload(step: T, device: torch.device) -> T:
    """The dataclass with its tensors on the device. Enqueued on the current stream."""
    if device.type == "cpu":
        return step
    return replace(step, **{name: x.to(device, non_blocking=True) for name, x in _tensors(step)})


def download(values: T) -> T:
    """The dataclass with its tensors in host memory; they may be read when the copy's event is done."""
    return replace(values, **{name: _host_copy(x) for name, x in _tensors(values)})


def _tensors(values: Any) -> list[tuple[str, Tensor]]:
    pairs = [(f.name, getattr(values, f.name)) for f in fields(values)]
    return [(name, x) for name, x in pairs if isinstance(x, Tensor)]


def _host_copy(tensor: Tensor) -> Tensor:
    if tensor.device.type == "cpu":
        return tensor
    tensor.record_stream(torch.cuda.current_stream(tensor.device))  # may be freed before the copy has run
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
