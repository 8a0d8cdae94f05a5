"""A server from its start to its end: the Ray cluster it needs, Serve, the application, and nothing left of it.

In a cluster of its own everything ends with the process that started it. In a cluster that was there before, Serve's
actors outlive that process; a custodian waits for its end, however it comes, and takes the application away.
"""

from __future__ import annotations

import re
from types import TracebackType

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from ..configs.engine import EngineConfig
from ..configs.model_config import read_model_config
from ..configs.serving import ServeConfig
from ..errors import EngineDeadError
from .app import application
from .cluster import ensure_ray
from .custodian import Custody
from .scheduler_settings import max_model_len
from .serving.auth import load_keys
from .serving.http_server import check_port

SERVE_NAMESPACE = "serve"
_MAX_CHARS = 2000


class Server:
    """Serves from `__enter__` on."""

    def __init__(self, config: EngineConfig, serving: ServeConfig) -> None:
        """Checks what can be checked before anything is started; raises ConfigError and ModelError."""
        self._config, self._serving = config, serving
        max_model_len(config, read_model_config(config.model))
        load_keys(serving.api_key_file)
        check_port(serving.host, serving.port)
        self._custody: Custody | None = None

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        host = "127.0.0.1" if self._serving.host == "0.0.0.0" else self._serving.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self._serving.port}"

    def check(self) -> None:
        """Raises EngineDeadError when the application is gone for good."""
        try:
            application = serve.status().applications.get(self._serving.app_name)
        except (RayError, RayServeException) as error:
            raise EngineDeadError(f"Ray Serve has died: {error}") from None
        if application is None or application.status is ApplicationStatus.DEPLOY_FAILED:
            raise EngineDeadError(f"the application has failed: {application and application.message}")

    def __enter__(self) -> Server:
        config, serving = self._config, self._serving
        num_workers = config.world_size * serving.num_replicas
        self._cluster = ensure_ray(config.ray_address, config.num_cpus, num_workers, shows_logs=True)
        try:
            self._start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _start(self) -> None:
        serving = self._serving
        is_direct = serving.ingress == "direct"
        had_serve = _serve_runs()
        if not self._cluster.started_here:
            self._custody = Custody(serving.app_name, ends_serve=not had_serve)
        serve.start(
            proxy_location=ProxyLocation.Disabled if is_direct else ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=serving.host, port=serving.port),
        )
        try:
            serve.run(application(self._config, serving), name=serving.app_name, route_prefix="/")
        except RuntimeError as error:
            raise EngineDeadError(f"the server can't start: {_reason(str(error))}") from None

    def _end(self) -> None:
        if self._custody is not None:
            self._custody.end()
        elif ray.is_initialized():
            serve.delete(self._serving.app_name)
            serve.shutdown()  # type: ignore[no-untyped-call]
        self._cluster.close()


def _serve_runs() -> bool:
    """Whether Serve runs in the cluster already."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return any(actor["namespace"] == SERVE_NAMESPACE for actor in actors)


def _reason(message: str) -> str:
    """What a replica's constructor raised, without the way there."""
    lines = [line for line in message.splitlines() if re.match(r"^(\w+\.)+\w*(Error|Exception)\b.*: ", line.strip())]
    return lines[-1].strip().partition(": ")[2] if lines else " ".join(message.split())[:_MAX_CHARS]
