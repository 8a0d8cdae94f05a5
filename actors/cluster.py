"""Which Ray cluster an engine runs in: the one this process is in, one to join, or a new one that ends with us.

A cluster that merely happens to run on the machine is never joined; `address="auto"` asks for it.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import ray

from ..errors import ClusterError

log = logging.getLogger(__name__)

NAMESPACE = "penstock"
_OBJECT_STORE_BYTES = 100_000_000  # nothing large travels through Ray


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster of this process."""

    started_here: bool  # ours to end
    description: str

    def close(self) -> None:
        """Ends the cluster if it was started here."""
        if self.started_here and ray.is_initialized():
            ray.shutdown()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs, for choosing between ipc and tcp."""

    node: str  # node and user
    host: str


def ensure_ray(address: str | None, num_cpus: int | None = None, num_workers: int = 1) -> Cluster:
    """Uses, joins or starts a Ray cluster; says in one line which of the three.

    None means RAY_ADDRESS where that is set, else a new cluster of `num_cpus` (at least a CPU for each worker, when not
    given). Raises ClusterError when the cluster to join isn't there.
    """
    if ray.is_initialized():
        cluster = Cluster(False, f"uses the Ray cluster that this process is in ({_resources()})")
    elif (address := address or os.environ.get("RAY_ADDRESS")) and address != "local":
        _join(address)
        cluster = Cluster(False, f"joined the Ray cluster at {ray.get_runtime_context().gcs_address} ({_resources()})")
    else:
        _start(num_cpus or max(os.cpu_count() or 1, num_workers))
        cluster = Cluster(True, f"started a local Ray cluster ({_resources()})")
    log.info("%s", cluster.description)
    return cluster


def this_place() -> Place:
    """The place of this process, which is in a Ray cluster."""
    node_id = ray.get_runtime_context().get_node_id()
    return Place(f"{node_id}:{os.getuid()}", ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def total_resources() -> dict[str, float]:
    """What the cluster has in all."""
    return ray.cluster_resources()  # type: ignore[no-untyped-call, no-any-return]


def free_resources() -> dict[str, float]:
    """What nobody uses at the moment."""
    return ray.available_resources()  # type: ignore[no-untyped-call, no-any-return]


def node_resources() -> list[dict[str, float]]:
    """What each living node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _join(address: str) -> None:
    try:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"can't join a Ray cluster at {address!r}: {error}") from None


def _start(num_cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        namespace=NAMESPACE,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )


def _resources() -> str:
    total = total_resources()
    parts = [f"{total[name]:g} {name}s" for name in ("CPU", "GPU") if name in total]
    return ", ".join(parts) or "no CPUs"
