"""The Ray Serve application: `serve run penstock.actors.app:build model=demo`, or an `import_path` for `serve deploy`.

The arguments are the settings of the engine and of the server, as in a YAML file; `model` may name such a file.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application

from ..configs.engine import EngineConfig
from ..configs.load import load_configs
from ..configs.serving import ServeConfig
from .serving.replica import Replica

_END_S = 5.0  # for the engine's end, behind the draining
_MAX_ONGOING = 100_000  # the replica itself refuses what is too much, with 429
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 1.0, 5.0


def build(arguments: dict[str, Any]) -> Application:
    """The application; through Serve's proxy unless `ingress` says otherwise. Raises ConfigError and ModelError."""
    config, serving = load_configs(**({"ingress": "proxy"} | arguments))
    return application(config, serving)


def application(config: EngineConfig, serving: ServeConfig) -> Application:
    """The application for these settings."""
    deployment = serve.deployment(
        name="penstock",
        ray_actor_options={"num_cpus": 0},  # the engine's workers take what it needs
        num_replicas=serving.num_replicas,
        max_constructor_retry_count=1,  # what keeps an engine from starting keeps the next one too
        max_ongoing_requests=_MAX_ONGOING,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=serving.drain_timeout_s + _END_S,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
    )(Replica)
    bound: Application = deployment.bind(config, serving)
    return bound
