"""Which Ray cluster an engine runs in: the one this process is in, one to join, or a new one that ends with us.

A cluster that merely happens to run on the machine is never joined; `address="auto"` asks for it.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import ClusterError

log = logging.getLogger(__name__)

NAMESPACE = "penstock"
_OBJECT_STORE_BYTES = 100_000_000  # nothing large travels through Ray
_AUTH_LOGGER = "ray._private.authentication.authentication_token_setup"
_AUTH_VARIABLE = "RAY_AUTH_MODE"
_PROBE_S = 5.0
_LOOK_S = 0.2
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the process of a job


@dataclass(frozen=True, slots=True)
class Cluster:
    """The cluster of this process."""

    description: str
    session_folder: str | None = None  # of a cluster that was started here, and is ours to end
    gcs_address: str = ""  # of such a cluster: who ends first

    @property
    def started_here(self) -> bool:
        """Whether it ends with us."""
        return self.session_folder is not None

    def attempt(self, work: Callable[[], object]) -> None:
        """Does what needs the cluster, on a thread, and gives it up where one that was started here has ended.

        A signal to this process's whole group ends Ray's processes with it, and their silence would be waited for.
        """
        thread = threading.Thread(target=work, name="cluster", daemon=True)
        thread.start()
        while thread.is_alive() and not self.has_ended():
            thread.join(_LOOK_S)
        if thread.is_alive():
            self.tell_of_end()

    def tell_of_end(self) -> None:
        """Says that it has ended."""
        log.warning("the Ray cluster has ended before us, by a signal to all our processes? What ran is cut off")

    def has_ended(self) -> bool:
        """Whether a cluster that was started here is there no more."""
        if not self.started_here:
            return False
        try:
            _connect(self.gcs_address)
        except OSError:
            return True
        return False

    def close(self) -> None:
        """Ends the cluster if it was started here, and removes the socket files that Ray leaves."""
        if self.session_folder is not None and ray.is_initialized():
            ray.shutdown()
            shutil.rmtree(os.path.join(self.session_folder, "sockets"), ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a process runs, for choosing between ipc and tcp."""

    node_id: str  # Ray's
    node: str  # node and user
    host: str


def ensure_ray(
    address: str | None, num_cpus: int | None = None, num_workers: int = 1, shows_logs: bool = False
) -> Cluster:
    """Uses, joins or starts a Ray cluster; says in one line which of the three.

    None means RAY_ADDRESS where that is set, else a new cluster of `num_cpus` (at least a CPU for each worker, when not
    given). `shows_logs` brings what the actors log to this process, as a Ray job always does. Raises ClusterError when
    the cluster to join isn't there.
    """
    if ray.is_initialized():
        cluster = Cluster(f"uses the Ray cluster that this process is in ({_resources()})")
    elif (address := _to_join(address)) is not None:
        _join(address, shows_logs)
        cluster = Cluster(f"joined the Ray cluster at {_address()} ({_resources()})")
    else:
        started = _start(num_cpus or max(os.cpu_count() or 1, num_workers), shows_logs)
        cluster = Cluster(
            f"started a local Ray cluster ({_resources()})", started["session_dir"], started["gcs_address"]
        )
    log.info("%s", cluster.description)
    return cluster


def starts_cluster(address: str | None) -> bool:
    """Whether `ensure_ray` would start a cluster, which ends with this process."""
    return not ray.is_initialized() and _to_join(address) is None


def this_place() -> Place:
    """The place of this process, which is in a Ray cluster."""
    node_id = ray.get_runtime_context().get_node_id()
    return Place(node_id, f"{node_id}:{os.getuid()}", ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Puts an actor here: Ray puts one without resources on any node, unless its affinity is hard."""
    return NodeAffinitySchedulingStrategy(this_place().node_id, soft=False)


def total_resources() -> dict[str, float]:
    """What the cluster has in all."""
    return ray.cluster_resources()  # type: ignore[no-untyped-call, no-any-return]


def free_resources() -> dict[str, float]:
    """What nobody uses at the moment."""
    return ray.available_resources()  # type: ignore[no-untyped-call, no-any-return]


def node_resources() -> list[dict[str, float]]:
    """What each living node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _to_join(address: str | None) -> str | None:
    """The cluster that this address, or RAY_ADDRESS, names; None: a new one."""
    address = address or os.environ.get("RAY_ADDRESS")
    return None if address in (None, "", "local") else address


def _join(address: str, shows_logs: bool) -> None:
    _probe(address)
    try:
        with _own_sigterm():
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=shows_logs or _JOB_VARIABLE in os.environ,
                logging_level=logging.WARNING,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"can't join a Ray cluster at {address!r}: {error}{_hint(address)}") from None


def _hint(address: str) -> str:
    """Ray enables tokens by itself where it starts or finds a cluster, but not to join one by its address."""
    if address == "auto" or _AUTH_VARIABLE in os.environ:
        return ""
    return f"; if it checks tokens, set {_AUTH_VARIABLE}=token: to an address Ray sends one only then"


def _probe(address: str) -> None:
    """Ray tries for minutes to reach an address where nobody listens; a connection tells at once."""
    if address.startswith("ray://"):
        raise ClusterError(f"{address!r} is a Ray Client address: run inside the cluster, for example as a Ray job")
    if not address.rpartition(":")[2].isdigit():
        return  # "auto"
    try:
        _connect(address)
    except OSError as error:
        raise ClusterError(f"can't join a Ray cluster at {address!r}: {error}") from None


def _connect(address: str) -> None:
    """Reaches an address and leaves it; raises OSError where nobody listens."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()


def _start(num_cpus: int, shows_logs: bool) -> dict[str, str]:
    """Starts a cluster; where it is, in Ray's words."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger(_AUTH_LOGGER).setLevel(logging.ERROR)  # it says at every start that tokens are on, or off
    with _own_sigterm():
        context: Any = ray.init(
            address="local",
            num_cpus=num_cpus,
            namespace=NAMESPACE,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=shows_logs,
            logging_level=logging.WARNING,
        )
    return context.address_info  # type: ignore[no-any-return]


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Once Ray has started, SIGTERM ends the process on the spot; a handler that it had before is put back."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    if callable(handler) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)


def _resources() -> str:
    total = total_resources()
    parts = [f"{total[name]:g} {name}s" for name in ("CPU", "GPU") if name in total]
    return ", ".join(parts) or "no CPUs"
