"""The engine's side of one worker: plans out, results and heartbeats in."""

from __future__ import annotations

from dataclasses import dataclass

from .sockets import Receiver, Sender

MAX_PLANS = 256  # frames that wait for a worker; the scheduler leaves far fewer un-retired
MAX_UPLINK = 1024  # frames that wait for the engine


@dataclass(frozen=True, slots=True)
class WorkerName:
    """Which worker, in words that an operator can act on."""

    stage_idx: int
    tp_rank: int
    pid: int
    node: str = ""

    def __str__(self) -> str:
        return f"stage {self.stage_idx} rank {self.tp_rank} (pid {self.pid})"


@dataclass(slots=True)
class WorkerPort:
    """One worker's pair of sockets, and what is known of its life."""

    name: WorkerName
    plans: Sender
    uplink: Receiver
    last_heard: float = 0.0  # on the engine's clock
    last_retired_step: int = -1

    def close(self) -> None:
        """Ends both pairs."""
        self.plans.close()
        self.uplink.close()
