"""The tree of errors that Penstock raises; every message names the value and the limit."""

from __future__ import annotations


class PenstockError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(PenstockError, ValueError):
    """A setting, a preset or a YAML file is wrong."""


class ModelError(PenstockError, ValueError):
    """A model folder can't be served: missing files, unknown architecture, damaged tensors."""


class RequestError(PenstockError, ValueError):
    """A request can't be served; other requests go on.

    `reason` leaves out which prompt of several it is, `field` names what of the request is wrong, where that is one.
    """

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.reason = message
        self.field = field


class ClusterError(PenstockError, RuntimeError):
    """The Ray cluster lacks what the engine asks for."""


class EngineNotFoundError(PenstockError, LookupError):
    """No engine of that name runs in the cluster."""


class EngineDeadError(PenstockError, RuntimeError):
    """The engine has failed or was shut down; the message says which part and why."""
