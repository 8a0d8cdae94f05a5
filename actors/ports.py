"""Which links a rank has: to its neighbours, for the tokens' way back, and to its stage's other ranks."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.stage import StagePorts
from ..model.tensor_parallel import NoTensorParallel, TensorParallel
from .links import LinkRoom


@dataclass(frozen=True, slots=True)
class RankPosition:
    """Which rank of which stage, among how many."""

    stage_idx: int
    tp_rank: int
    num_stages: int
    tp_size: int

    @property
    def name(self) -> str:
        """Unique among the engine's ranks."""
        return f"{self.stage_idx}.{self.tp_rank}"

    @property
    def everybody(self) -> list[str]:
        """The names of all ranks."""
        return [f"{stage}.{rank}" for stage in range(self.num_stages) for rank in range(self.tp_size)]

    @property
    def is_last_stage(self) -> bool:
        return self.stage_idx == self.num_stages - 1

    @property
    def answers(self) -> bool:
        """Whether this rank sends the steps' results."""
        return self.is_last_stage and self.tp_rank == 0


def open_ports(room: LinkRoom, position: RankPosition) -> StagePorts:
    """The rank's ports.

    Both ends of an edge wait for each other, so every rank makes its edges in one order: the activations' edges by
    stage, then the tokens' way back, then the stage's group.
    """
    k, last, rank = position.stage_idx, position.num_stages - 1, position.tp_rank
    upstream = room.receiving(f"activations{k - 1}-{k}.{rank}") if k > 0 else None
    downstream = room.sending(f"activations{k}-{k + 1}.{rank}") if k < last else None
    token_receive = room.receiving(f"tokens.{rank}") if k == 0 < last else None
    token_send = room.sending(f"tokens.{rank}") if 0 < k == last else None
    return StagePorts(
        tensor_parallel=_tensor_parallel(room, position),
        upstream=upstream,
        downstream=downstream,
        token_send=token_send,
        token_receive=token_receive,
    )


def _tensor_parallel(room: LinkRoom, position: RankPosition) -> TensorParallel:
    if position.tp_size == 1:
        return NoTensorParallel()
    return room.collectives(f"stage{position.stage_idx}", position.tp_rank, position.tp_size)
