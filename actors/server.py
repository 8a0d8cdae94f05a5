"""A server from its start to its end: the Ray cluster it needs, Serve, the application, and nothing left of it.

In a cluster of its own everything ends with the process that started it. In a cluster that was there before, Serve's
actors outlive that process; a custodian waits for its end, however it comes, and takes the application away.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from functools import partial
from types import TracebackType

from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from ..configs.engine import EngineConfig
from ..configs.model_config import read_model_config
from ..configs.serving import ServeConfig
from ..errors import EngineDeadError
from .app import LOGGING, application
from .cluster import Cluster, ensure_ray, this_place, total_resources
from .custodian import Custody, take_away
from .logs import hush_serve
from .placement import check_capacity, resolve_device
from .scheduler_settings import max_model_len
from .serving.auth import load_keys
from .serving.chat_parser import chat_parser
from .serving.http_server import check_port
from .tokenizer import check_tokenizer

_MAX_CHARS = 2000
_END_S = 60.0  # for the application's end, behind the draining


class Server:
    """Serves from `__enter__` on."""

    def __init__(self, config: EngineConfig, serving: ServeConfig) -> None:
        """Checks what can be checked before anything is started; raises ConfigError and ModelError."""
        self._config, self._serving = config, serving
        max_model_len(config, read_model_config(config.model))
        check_tokenizer(config)
        load_keys(serving.api_key_file)
        chat_parser(serving.tool_call_parser, serving.reasoning_parser, prompt="")
        if serving.ingress == "direct":
            check_port(serving.host, serving.port)
        self._begun = ExitStack()  # what has to be ended, the last first

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
        if application is None:
            raise EngineDeadError(f"the application {self._serving.app_name!r} has been taken away")
        if application.status is ApplicationStatus.DEPLOY_FAILED:
            raise EngineDeadError(f"the application has failed: {application.message}")

    def __enter__(self) -> Server:
        config, serving = self._config, self._serving
        hush_serve()
        with ExitStack() as begun:
            num_workers = config.world_size * serving.num_replicas
            cluster = ensure_ray(config.ray_address, config.num_cpus, num_workers, shows_logs=True)
            begun.callback(cluster.close)
            self._start(cluster, begun)
            self._begun = begun.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begun.close()

    def _start(self, cluster: Cluster, begun: ExitStack) -> None:
        serving = self._serving
        is_direct = serving.ingress == "direct"
        check_capacity(self._config, resolve_device(self._config, total_resources()), serving.num_replicas)
        if cluster.started_here:
            leave = partial(take_away, serving.app_name, ends_serve=False)  # which ends with the cluster
            begun.callback(cluster.attempt, leave)
        else:
            begun.callback(Custody(serving.app_name, serving.drain_timeout_s + _END_S).end)
        serve.start(
            proxy_location=ProxyLocation.Disabled if is_direct else ProxyLocation.EveryNode,
            http_options=HTTPOptions(host=serving.host, port=serving.port),
            logging_config=LOGGING,
        )
        node_id = this_place().node_id if is_direct else None
        try:
            serve.run(
                application(self._config, serving, node_id),
                name=serving.app_name,
                route_prefix=None if is_direct else "/",
            )
        except (RuntimeError, RayServeException) as error:
            raise EngineDeadError(f"the server can't start: {_reason(serving.app_name, str(error))}") from None


def _reason(app_name: str, message: str) -> str:
    """Why the application could not be deployed: what a replica's constructor raised, else what Serve says."""
    application = serve.status().applications.get(app_name)
    told = [each.message for each in application.deployments.values()] if application is not None else []
    for text in told:
        if raised := re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception)): (.+)", text, re.MULTILINE):
            kind, why = raised[-1]
            return why if f".{kind}: {why}" in text else f"{kind}: {why}"
    return " ".join(" ".join([message, *told]).split())[:_MAX_CHARS]
