"""Where the package's own log lines go."""

from __future__ import annotations

import logging
import os


def speak(prefix: str = "penstock: ") -> None:
    """Lets them out on stderr, and keeps Ray's advice on tokens to itself.

    Called before Ray is imported it also has Ray show each line of several workers, and keep to itself that the call
    which ends Serve is never answered.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", prefix)
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"Task ServeController\.graceful_shutdown failed")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    log = logging.getLogger("penstock")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def hush_serve() -> None:
    """Serve tells of every step on the way, in each process that asks it for something; warnings are enough."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
