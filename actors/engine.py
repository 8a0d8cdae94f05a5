"""Starting an engine in a Ray cluster, finding one that runs, and ending it without a trace."""

from __future__ import annotations

import atexit
import os
import time
import uuid
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import remove_placement_group

from ..configs.engine import EngineConfig
from ..configs.model_config import ModelConfig, read_model_config
from ..errors import ClusterError, ConfigError, EngineDeadError, EngineNotFoundError
from .client import FORKED, EngineClient
from .cluster import NAMESPACE, Cluster, ensure_ray, on_this_node, starts_cluster, this_place, total_resources
from .engine_health import HEALTH_TIMEOUT_S, EngineHealth
from .engine_spec import STAGE_BUILDER, EngineInfo, EngineSpec, StageFigures
from .placement import group_name, resolve_device
from .prompts import Limits
from .ray_errors import first_line, own_error
from .scheduler_actor import SchedulerActor
from .scheduler_settings import max_model_len

_CALL_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
_LOOK_S = 0.2


class EngineHandle:
    """An engine, from any process of its cluster. Made by `start_engine` it owns the engine, unless that is detached.

    What `find_engine` gives only visits.
    """

    def __init__(self, actor: Any, info: EngineInfo, cluster: Cluster, started: bool) -> None:
        self._actor = actor
        self._info = info
        self._cluster = cluster
        self._started = started  # through this handle: `shutdown` ends it
        self._clients: weakref.WeakSet[EngineClient] = weakref.WeakSet()
        self._closed = False
        self._pid = os.getpid()
        atexit.register(self.leave)

    @property
    def name(self) -> str:
        """The engine's name in the cluster."""
        return self._info.spec.name

    @property
    def config(self) -> EngineConfig:
        """The settings that it runs with."""
        return self._info.spec.config

    @property
    def model_config(self) -> ModelConfig:
        """Its model."""
        return self._info.spec.model_config

    @property
    def limits(self) -> Limits:
        """What a prompt is held against."""
        return Limits(
            vocab_size=self.model_config.vocab_size,
            max_model_len=max_model_len(self.config, self.model_config),
            cache_tokens=self._info.num_blocks * self.config.block_size,
        )

    @property
    def stages(self) -> tuple[StageFigures, ...]:
        """What each rank of each stage has and takes."""
        return self._info.stages

    @property
    def pids(self) -> list[int]:
        """The engine's processes, on whichever nodes."""
        return list(self._info.pids)

    def client(self) -> EngineClient:
        """A new client of the engine; raises EngineDeadError."""
        client = EngineClient(self._actor, self._info)
        self._clients.add(client)
        return client

    def stats(self) -> dict[str, Any]:
        """The engine's figures, those of each stage under "stages"; raises EngineDeadError."""
        figures: dict[str, Any] = self._ask(_CALL_TIMEOUT_S, "stats")
        return figures

    def health(self) -> EngineHealth:
        """That the engine serves, within some 2 s; raises EngineDeadError when it is dead, hung or left by this handle.

        A stage that is dead or hung shows as soon as the engine has noticed, and with its name.
        """
        health: EngineHealth = self._ask(HEALTH_TIMEOUT_S, "health")
        return health

    def _ask(self, timeout_s: float, method: str) -> Any:
        """What the engine's actor answers, or EngineDeadError."""
        if self._closed:
            raise EngineDeadError(f"engine {self.name!r}: this handle has left it")
        if os.getpid() != self._pid:
            raise EngineDeadError(f"engine {self.name!r}: {FORKED}")
        try:
            return ray.get(getattr(self._actor, method).remote(), timeout=timeout_s)
        except RayTaskError as error:
            raise own_error(error, f"engine {self.name!r}") from None
        except (RayActorError, TimeoutError) as error:
            raise EngineDeadError(f"engine {self.name!r} doesn't answer: {first_line(error)}") from None

    def leave(self) -> None:
        """Leaves the engine, and ends it if this handle owns it; so ends a `with` block, and so ends the process."""
        self._close(ends_engine=self._started and not self.config.detached)

    def shutdown(self) -> None:
        """Ends the engine that this handle started, a detached one too, or leaves the one that it found.

        Once the engine is left, by whichever call, another does nothing.
        """
        self._close(ends_engine=self._started)

    def end_engine(self) -> None:
        """Ends the engine, also one that this handle only found."""
        self._close(ends_engine=True)

    def _close(self, ends_engine: bool) -> None:
        if self._closed or os.getpid() != self._pid:  # a fork's copy ends nothing
            return
        self._closed = True
        atexit.unregister(self.leave)
        if ray.is_initialized():
            if ends_engine:
                _end(self._actor, self.name, self._info, self._cluster)
            for client in list(self._clients):
                client.close()
        self._cluster.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a handle can't be pickled; pass the name {self.name!r} on, and penstock.connect there")

    def __enter__(self) -> EngineHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def start_engine(config: EngineConfig, *, stage_builder: str = STAGE_BUILDER) -> EngineHandle:
    """Starts an engine and waits until it serves.

    Raises ModelError and ConfigError for what can't be served, ClusterError for what the cluster lacks. Whatever
    happens, nothing is left behind.
    """
    model_config = read_model_config(config.model)
    max_model_len(config, model_config)
    if config.detached and starts_cluster(config.ray_address):
        raise ConfigError(
            "detached is True, but the Ray cluster that this process would start ends with it; "
            "name a cluster to join, by ray_address or RAY_ADDRESS"
        )
    cluster = ensure_ray(config.ray_address, config.num_cpus, config.world_size)
    actor = None
    name = config.name or f"engine-{uuid.uuid4().hex[:8]}"
    try:
        spec = EngineSpec(name, _resolved(config), model_config, stage_builder)
        actor = _create(spec)
        info = _started(actor, name)
    except BaseException:
        if actor is not None:
            _end(actor, name, None, cluster)
        cluster.close()
        raise
    return EngineHandle(actor, info, cluster, started=True)


def find_engine(name: str, address: str | None = "auto") -> EngineHandle:
    """A handle to an engine that runs; an application's only engine goes by the application's name as well.

    Raises ClusterError without a cluster, EngineNotFoundError without such an engine.
    """
    cluster = ensure_ray(address or "auto")
    info: EngineInfo | None
    try:
        actor: Any = ray.get_actor(_own_name(name), namespace=NAMESPACE)
        info = ray.get(actor.info.remote(), timeout=_CALL_TIMEOUT_S)
    except (ValueError, RayActorError):
        raise EngineNotFoundError(f"no engine named {name!r} runs in the cluster; {_running_engines()}") from None
    except TimeoutError:
        raise EngineNotFoundError(f"engine {name!r} doesn't answer") from None
    if info is None:
        raise EngineNotFoundError(f"engine {name!r} is still starting")
    return EngineHandle(actor, info, cluster, started=False)


def _resolved(config: EngineConfig) -> EngineConfig:
    """The settings as the engine's processes take them: the device chosen, paths absolute."""
    paths = {key: str(Path(path).absolute()) for key in ("trace", "record") if (path := getattr(config, key))}
    device = resolve_device(config, total_resources())
    return config.model_copy(update={"device": device, **paths})


def _create(spec: EngineSpec) -> Any:
    """The engine's actor, on this node; without a CPU of its own, so that it always has a place."""
    options = SchedulerActor.options(
        name=spec.name,
        namespace=NAMESPACE,
        lifetime="detached" if spec.config.detached else None,
        num_cpus=0,
        max_concurrency=8,
        scheduling_strategy=on_this_node(),
    )
    try:
        return options.remote(spec)
    except ValueError:
        raise ClusterError(
            f"an engine named {spec.name!r} already runs in the cluster; connect to it, or choose another name"
        ) from None


def _started(actor: Any, name: str) -> EngineInfo:
    try:
        info: EngineInfo = ray.get(actor.start.remote())
    except RayTaskError as error:
        raise own_error(error, f"engine {name!r}") from None
    except RayActorError as error:
        raise EngineDeadError(f"engine {name!r} died while it started: {first_line(error)}") from None
    return info


def _own_name(name: str) -> str:
    """The name itself, or that of the only engine which an application's name stands for."""
    names = _engine_names()
    of_application = [each for each in names if each.rpartition("-")[0] == name]
    return of_application[0] if name not in names and len(of_application) == 1 else name


def _engine_names() -> list[str]:
    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["name"] for actor in actors if actor["namespace"] == NAMESPACE)


def _running_engines() -> str:
    names = _engine_names()
    return f"there are: {', '.join(names)}" if names else "none runs there"


def _end(actor: Any, name: str, info: EngineInfo | None, cluster: Cluster) -> None:
    """Ends the engine's processes and waits until those of this node are gone.

    Where a signal to all our processes has ended the cluster, they went with it, and its silence isn't waited for.
    """
    with suppress(RayError):  # it may be dead already
        _wait_for(actor.shutdown.remote(), cluster)
    if cluster.has_ended():
        cluster.tell_of_end()
        return
    with suppress(RayError):
        ray.kill(actor, no_restart=True)
    with suppress(ValueError):  # the group went with the workers, unless the actor died before it could
        remove_placement_group(ray.util.get_placement_group(group_name(name)))
    if info is not None:
        here = this_place().node
        _wait_until_gone([pid for pid, node in info.pids.items() if node == here])


def _wait_for(answer: Any, cluster: Cluster) -> None:
    deadline = time.monotonic() + _CALL_TIMEOUT_S
    while time.monotonic() < deadline and not cluster.has_ended():
        if ray.wait([answer], timeout=_LOOK_S)[0]:
            return


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + _END_TIMEOUT_S
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
