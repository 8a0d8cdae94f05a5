"""What the processes of an engine tell each other at its start, through Ray."""

from __future__ import annotations

from dataclasses import dataclass

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig
from ..model.layer_span import LayerSpan
from ..scheduler.cost import StepCost
from .sockets import Address, Peer
from .worker_port import WorkerName

STAGE_BUILDER = "penstock.model.stage:build_stage"
START_TIMEOUT_S = 1800.0  # for weights to load


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine before it starts; nothing in it depends on where it runs."""

    name: str
    config: EngineConfig  # `model` is a folder, `device` is resolved, paths are absolute
    model_config: ModelConfig
    stage_builder: str = STAGE_BUILDER  # "module:function" that makes a rank's stage


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One rank of an engine."""

    engine: EngineSpec
    stage_idx: int
    tp_rank: int


@dataclass(frozen=True, slots=True)
class WorkerOffer:
    """Where a worker runs and takes its plans."""

    name: WorkerName
    peer: Peer
    plans: Address


@dataclass(frozen=True, slots=True)
class StoreAddress:
    """Where the links' store listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker must know of the others before it makes its links and its cache."""

    store: StoreAddress
    host: str  # where this rank takes its links
    num_ranks_here: int  # ranks of the engine on this node, which share its cores
    num_blocks: int  # of the KV cache, the same on every rank


@dataclass(frozen=True, slots=True)
class StageFigures:
    """What a rank of a stage has and takes, once it is ready; None: not measured, as on a CPU."""

    stage_idx: int
    tp_rank: int
    span: LayerSpan
    num_blocks: int  # that all ranks agreed on
    weight_bytes: int
    cache_bytes: int
    build_s: float  # from the connected worker to the ready one
    step_cost: StepCost | None = None
    bytes_per_s: float | None = None  # of the device's memory
    flops_per_s: float | None = None  # of a matrix product


@dataclass(frozen=True, slots=True)
class ClientOffer:
    """Where a client runs and takes its events."""

    peer: Peer
    events: Address


@dataclass(frozen=True, slots=True)
class ClientAdmission:
    """What the engine answers to a client's offer."""

    client_id: str
    requests: Address


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """A running engine, as its clients must know it."""

    spec: EngineSpec
    num_blocks: int
    peer: Peer  # of the SchedulerActor
    pids: dict[int, str]  # the engine's processes, and the node and user of each
    stages: tuple[StageFigures, ...]  # by stage, then rank
