"""The Ray Serve application: `serve run penstock.actors.app:build model=demo`, or an `import_path` for `serve deploy`.

The arguments are the settings of the engine and of the server, as in a YAML file; `model` may name such a file.
API keys are read here, where the application is built, and replicas get their digests: a replica's environment is that
of its node, whose Ray may have been started by anybody.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from ..configs.engine import EngineConfig
from ..configs.load import load_configs
from ..configs.serving import ServeConfig
from .serving.auth import load_keys
from .serving.prefix_router import PrefixAwareRouter
from .serving.replica import EngineReplica, FrontReplica, Replica

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)  # of Serve; each request has a line of ours
_END_S = 5.0  # for the engine's end, behind the draining
_UNBOUNDED = 1_000_000  # requests: the API itself refuses what is too much, with 429


def build(arguments: dict[str, Any]) -> Application:
    """The application; through Serve's proxy unless `ingress` says otherwise. Raises ConfigError and ModelError."""
    return application(*load_configs(**({"ingress": "proxy"} | arguments)))


def application(config: EngineConfig, serving: ServeConfig, node_id: str | None = None) -> Application:
    """The application for these settings: one deployment, or a front and engines behind it.

    What takes connections runs on the node `node_id`, where one is given. Raises ConfigError for a key file that can't
    be read here.
    """
    keys = load_keys(serving.api_key_file)
    facing, inner = _options(serving, node_id), _options(serving, None)
    if not serving.is_replicated:
        alone: Application = serve.deployment(name="penstock", **facing)(Replica).bind(config, serving, keys)
        return alone
    engines = serve.deployment(name="engine", **inner, **_scaling(serving))(EngineReplica).bind(config, serving)
    front: Application = serve.deployment(name="front", **facing)(FrontReplica).bind(config, serving, keys, engines)
    return front


def _options(serving: ServeConfig, node_id: str | None) -> dict[str, Any]:
    place = {} if node_id is None else {"label_selector": {"ray.io/node-id": node_id}}
    return {
        "ray_actor_options": {"num_cpus": 0, **place},  # the engine's workers take what it needs
        "logging_config": LOGGING,
        "max_ongoing_requests": _UNBOUNDED,
        "max_constructor_retry_count": 1,  # what keeps an engine from starting keeps the next one too
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": serving.drain_timeout_s + _END_S,
        "health_check_period_s": 1.0,
        "health_check_timeout_s": 5.0,
    }


def _scaling(serving: ServeConfig) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if serving.request_router == "prefix_aware":
        options["request_router_config"] = RequestRouterConfig(
            request_router_class=f"{PrefixAwareRouter.__module__}:{PrefixAwareRouter.__qualname__}"  # type: ignore[arg-type]
        )
    if serving.max_replicas is None:
        return options | {"num_replicas": serving.num_replicas}
    return options | {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=serving.num_replicas,
            max_replicas=serving.max_replicas,
            target_ongoing_requests=serving.target_ongoing_requests,
        )
    }
