"""Where the package's own log lines go."""

from __future__ import annotations

import logging


def speak(prefix: str = "penstock: ") -> None:
    """Lets them out on stderr, and keeps Ray's advice on tokens to itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"{prefix}%(message)s"))
    log = logging.getLogger("penstock")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
