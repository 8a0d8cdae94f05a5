"""Takes an application away when the process that deployed it has ended, however that came.

Serve's actors outlive their driver. A lease, an actor that ends with the driver, tells whether it lives; the custodian,
which outlives it as well, looks at the lease, and at the end removes the application, Serve if it was started for it
and serves nobody else, and itself.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..errors import ClusterError
from .cluster import NAMESPACE, this_place
from .logs import hush_serve, speak

log = logging.getLogger(__name__)

_POLL_S = 0.5
_ANSWER_S = 60.0


def take_away(app_name: str, ends_serve: bool) -> None:
    """Removes an application, waiting for the requests that its settings let finish, and Serve if it has no other."""
    with suppress(RayError, RayServeException):  # Serve has ended by itself
        while app_name in serve.status().applications:
            with suppress(TimeoutError):  # requests that run may take longer than Serve waits at once
                serve.delete(app_name)
        if ends_serve and not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]


class _Lease:
    """Lives as long as the driver that made it."""

    @ray.method
    def renew(self) -> None:
        """Answers while the driver lives."""


class _Custodian:
    """One application's."""

    def __init__(self, app_name: str, ends_serve: bool) -> None:
        speak()
        hush_serve()
        self._app_name = app_name
        self._ends_serve = ends_serve
        self._lock = threading.Lock()
        self._has_ended = False

    @ray.method
    def watch(self, lease: Any) -> None:
        """Waits for the driver's end, on a thread of its own."""
        threading.Thread(target=self._watch, args=(lease,), name="watch", daemon=True).start()

    @ray.method
    def end(self) -> None:
        """Removes the application; running requests get the time that its settings give them."""
        self._end()

    def _end(self) -> None:
        with self._lock:
            if not self._has_ended:
                take_away(self._app_name, self._ends_serve)
                self._has_ended = True

    def _watch(self, lease: Any) -> None:
        while not self._has_ended:
            try:
                ray.get(lease.renew.remote(), timeout=_ANSWER_S)
            except RayActorError:
                break
            except RayError as error:
                log.warning("the lease can't be asked: %s", error)
            threading.Event().wait(_POLL_S)
        self._end()
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


Lease = ray.remote(_Lease)
CustodianActor = ray.remote(_Custodian)


class Custody:
    """The driver's side. Raises ClusterError when the application has a custodian already."""

    def __init__(self, app_name: str, ends_serve: bool, end_timeout_s: float) -> None:
        self._end_timeout_s = end_timeout_s
        self._lease: Any = Lease.options(num_cpus=0).remote()
        node_id = this_place().node.partition(":")[0]
        options = CustodianActor.options(
            name=f"custodian-{app_name}",
            namespace=NAMESPACE,
            lifetime="detached",
            num_cpus=0,
            max_concurrency=4,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=True),
        )
        self._custodian: Any
        try:
            self._custodian = options.remote(app_name, ends_serve)
        except ValueError:
            raise ClusterError(f"an application named {app_name!r} is served already; give another app_name") from None
        ray.get(self._custodian.watch.remote(self._lease))

    def end(self) -> None:
        """Removes the application and waits for that."""
        with suppress(RayError):
            ray.get(self._custodian.end.remote(), timeout=self._end_timeout_s)
            ray.kill(self._custodian, no_restart=True)
        ray.kill(self._lease, no_restart=True)
