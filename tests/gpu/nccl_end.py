"""One end of a link over NCCL, as a process: PORT of the store, FILE touched once the first send is over, RANK."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from penstock.actors.engine_spec import StoreAddress
from penstock.actors.links import LinkRoom

SIZE = 1 << 18  # int64: 2 MiB


def main(port: int, sent: Path, rank: int) -> None:
    torch.cuda.set_device(rank)
    room = LinkRoom(StoreAddress("127.0.0.1", port), "127.0.0.1", "cuda", 0, 60.0)
    tensor = torch.full((SIZE,), 7 if rank == 0 else 0, dtype=torch.int64, device="cuda")
    link = room.sending("edge") if rank == 0 else room.receiving("edge")
    while rank == 1 and not sent.exists():
        time.sleep(0.001)
    start_s = time.monotonic()
    (link.send if rank == 0 else link.receive)(tensor[:1024])
    issued_s = time.monotonic() - start_s
    if rank == 0:
        done = torch.cuda.current_stream().record_event()
        while not done.query() and time.monotonic() - start_s < 5:
            time.sleep(0.001)
        assert done.query(), "the send waits for its receiver"
        sent.touch()
    (link.send if rank == 0 else link.receive)(tensor)
    torch.cuda.synchronize()
    assert int(tensor.min()) == 7
    assert issued_s < 0.05, f"the host waited {issued_s:.3f} s"


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
