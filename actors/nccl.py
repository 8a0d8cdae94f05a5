"""Process groups over NCCL, made without a world group.

A send or a receive runs on the communicator's own stream, behind the stream that is current when it is issued; waiting
for its handle makes the current stream wait for it. So under a lane's stream both are in the lane's order, and the
host waits for nothing.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Backend, Store

_DEFAULTS = {
    "NCCL_MAX_P2P_NCHANNELS": "1",  # a waiting receive costs the products beside it 4 % so, and up to 17 % with more
    "CUDA_DEVICE_MAX_CONNECTIONS": "32",  # lanes and communicators each have a queue, so that none waits for another
}


def nccl_group(store: Store, rank: int, size: int, timeout: timedelta) -> Backend:
    """A group; its communicator is made at its first use, which must be on all ranks at once."""
    from torch._C._distributed_c10d import ProcessGroupNCCL

    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    options: Any = ProcessGroupNCCL.Options()
    options.is_high_priority_stream = True
    options._timeout = timeout
    return ProcessGroupNCCL(store, rank, size, options)
