"""Room for an engine in the cluster: one placement group with a bundle for each stage, whose ranks stay on one node.

The group is created by the engine's SchedulerActor and ends with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ray.util.placement_group import placement_group, remove_placement_group

from ..errors import ClusterError
from .cluster import free_resources, node_resources, total_resources

if TYPE_CHECKING:
    from ray.util.placement_group import PlacementGroup

    from ..configs.engine import EngineConfig

Resources = dict[str, float]
WAIT_S = 5.0  # for resources that another engine is just giving back


def resolve_device(config: EngineConfig, cluster: Resources) -> Literal["cpu", "cuda"]:
    """`auto` is CUDA where the cluster has a GPU."""
    if config.device == "auto":
        return "cuda" if cluster.get("GPU", 0) > 0 else "cpu"
    return config.device


def worker_resources(device: str) -> Resources:
    """What one worker takes."""
    return {"CPU": 1.0, "GPU": 1.0} if device == "cuda" else {"CPU": 1.0}


def stage_bundles(config: EngineConfig, device: str) -> list[Resources]:
    """One bundle for each stage, with room for its ranks."""
    one = worker_resources(device)
    bundle = {name: amount * config.tensor_parallel_size for name, amount in one.items()}
    return [dict(bundle) for _ in range(config.pipeline_parallel_size)]


def group_name(engine_name: str) -> str:
    """The name of an engine's placement group."""
    return f"penstock-{engine_name}"


def reserve(name: str, config: EngineConfig, device: str) -> PlacementGroup:
    """The engine's placement group, ready. Raises ClusterError, saying what is missing; waits `WAIT_S` at most."""
    check_capacity(config, device)
    bundles = stage_bundles(config, device)
    group: PlacementGroup = placement_group(bundles, strategy="PACK", name=group_name(name))
    if not group.wait(WAIT_S):
        remove_placement_group(group)
        raise ClusterError(_request(config, bundles) + "; " + _shortage(bundles, free_resources(), "free"))
    return group


def check_capacity(config: EngineConfig, device: str, num_engines: int = 1) -> None:
    """Raises ClusterError when so many engines have no room in the cluster even if nobody else uses it."""
    bundles, total = stage_bundles(config, device), total_resources()
    request, needed = _request(config, bundles), bundles * num_engines
    if num_engines > 1:
        request = f"{num_engines} replicas: {request} each"
    if any(total.get(name, 0.0) < amount for name, amount in _sum(needed).items()):
        raise ClusterError(f"{request}; {_shortage(needed, total, 'in all')}")
    for name, amount in bundles[0].items():
        largest = max(node.get(name, 0.0) for node in node_resources())
        if largest < amount:
            raise ClusterError(
                f"{request}; a stage's {amount:g} {name}s must be on one node, but the largest has {largest:g}"
            )


def _request(config: EngineConfig, bundles: list[Resources]) -> str:
    stages, ranks = config.pipeline_parallel_size, config.tensor_parallel_size
    needed = " and ".join(f"{amount:g} {name}s" for name, amount in _sum(bundles).items())
    return f"the engine asks for {needed} ({stages} stages of {ranks} ranks)"


def _shortage(bundles: list[Resources], there: Resources, which: str) -> str:
    lacks = []
    for name, amount in _sum(bundles).items():
        has = there.get(name, 0.0)
        missing = f", {amount - has:g} are missing" if has < amount else ""
        lacks.append(f"the Ray cluster has {has:g} {name}s {which}{missing}")
    return " and ".join(lacks)


def _sum(bundles: list[Resources]) -> Resources:
    return {name: amount * len(bundles) for name, amount in bundles[0].items()}
