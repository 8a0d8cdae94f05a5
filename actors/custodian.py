"""Takes an application away when the process that deployed it has ended, however that came.

Serve's actors outlive their driver. A lease, an actor that ends with the driver, tells whether it lives; the custodian,
which outlives it as well, looks at the lease, and at the end removes the application and itself. Serve goes with the
last application, unless it ran before the first came.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from ..errors import ClusterError
from .cluster import on_this_node
from .logs import hush_serve, speak

log = logging.getLogger(__name__)

SERVE_NAMESPACE = "serve"
_NAMESPACE = "penstock-custodians"
_POLL_S = 0.5
_ANSWER_S = 60.0


def take_away(app_name: str, ends_serve: bool) -> None:
    """Removes an application, waiting for the requests that its settings let finish, and Serve if it has no other."""
    with suppress(RayError, RayServeException):  # Serve has ended by itself
        while ray.is_initialized() and app_name in serve.status().applications:  # else Serve would join another cluster
            with suppress(TimeoutError):  # requests that run may take longer than Serve waits at once
                serve.delete(app_name)
        if ends_serve and ray.is_initialized() and not serve.status().applications:
            serve.shutdown()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A custodian's."""

    is_ending: bool  # its application is on its way out
    ends_serve: bool  # Serve goes with the last application


class _Lease:
    """Lives as long as the driver that made it."""

    @ray.method
    def renew(self) -> None:
        """Answers while the driver lives."""


class _Custodian:
    """One application's."""

    def __init__(self, app_name: str) -> None:
        speak()
        hush_serve()
        self._app_name = app_name
        self._ends_serve = False
        self._lock = threading.Lock()
        self._is_ending = self._has_ended = False

    @ray.method
    def watch(self, lease: Any, ends_serve: bool) -> None:
        """Waits for the driver's end, on a thread of its own."""
        self._ends_serve = ends_serve
        threading.Thread(target=self._watch, args=(lease,), name="watch", daemon=True).start()

    @ray.method
    def plan(self) -> _Plan:
        """What it does, and will do."""
        return _Plan(self._is_ending, self._ends_serve)

    @ray.method
    def end(self) -> None:
        """Removes the application; running requests get the time that its settings give them."""
        self._end()

    def _end(self) -> None:
        self._is_ending = True
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
            time.sleep(_POLL_S)
        try:
            self._end()
        finally:  # else nobody could serve an application of that name again
            ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


Lease = ray.remote(_Lease)
CustodianActor = ray.remote(_Custodian)


class Custody:
    """The driver's side, from before it deploys. Raises ClusterError when the application has a custodian already."""

    def __init__(self, app_name: str, end_timeout_s: float) -> None:
        self._end_timeout_s = end_timeout_s
        ends_serve = _others_end_serve() or not _serve_runs()
        self._custodian: Any = _hire(app_name)
        self.lease: Any = Lease.options(num_cpus=0, scheduling_strategy=on_this_node()).remote()
        ray.get(self._custodian.watch.remote(self.lease, ends_serve))

    def end(self) -> None:
        """Removes the application and waits for that; where it takes longer, the custodian goes on by itself."""
        try:
            ray.get(self._custodian.end.remote(), timeout=self._end_timeout_s)
            ray.kill(self._custodian, no_restart=True)
        except RayError as error:
            log.warning("the application is not gone yet: %s", error)
        finally:
            ray.kill(self.lease, no_restart=True)


def _hire(app_name: str) -> Any:
    options = CustodianActor.options(
        name=f"custodian-{app_name}",
        namespace=_NAMESPACE,
        lifetime="detached",
        num_cpus=0,
        max_concurrency=4,
        scheduling_strategy=on_this_node(),
    )
    try:
        return options.remote(app_name)
    except ValueError:
        raise ClusterError(f"an application named {app_name!r} is served already; give another app_name") from None


def _others_end_serve() -> bool:
    """Whether Serve goes with the last of the applications that are there; waits for those on their way out."""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        plans = [plan for plan in map(_ask, _custodians()) if plan is not None]
        if time.monotonic() > deadline or not any(plan.is_ending for plan in plans):
            return any(plan.ends_serve for plan in plans)
        time.sleep(_POLL_S)


def _custodians() -> list[str]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if actor["namespace"] == _NAMESPACE]


def _ask(name: str) -> _Plan | None:
    try:
        custodian: Any = ray.get_actor(name, namespace=_NAMESPACE)
        plan: _Plan = ray.get(custodian.plan.remote(), timeout=_ANSWER_S)
    except (RayError, ValueError):  # it has just ended
        return None
    return plan


def _serve_runs() -> bool:
    """Whether Serve runs in the cluster already."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["namespace"] == SERVE_NAMESPACE for actor in actors)
