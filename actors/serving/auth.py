"""API keys: from a file or the environment, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from ...errors import ConfigError
from .errors import ApiError

VARIABLE = "PENSTOCK_API_KEY"


class Keys:
    """The keys that open the API; none: it is open to everybody. It holds digests alone, and so may travel."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._digests)

    def check(self, authorization: str | None) -> None:
        """Raises ApiError 401 unless the header brings one of the keys."""
        if not self._digests:
            return
        # A header's text stands for its bytes, one character for each.
        scheme, _, key = (authorization or "").partition(" ")
        found = _digest(key.strip(" \t").encode("latin-1", "replace")) if scheme.lower() == "bearer" else b""
        matches = [hmac.compare_digest(found, digest) for digest in self._digests]  # all of them, whichever fits
        if not any(matches):
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")


def load_keys(file: str | None) -> Keys:
    """The keys of the file and of this process's environment, for whoever builds the application.

    Raises ConfigError for a file that can't be read or holds none.
    """
    keys = [os.environ[VARIABLE]] if os.environ.get(VARIABLE) else []
    if file is not None:
        try:
            lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"api_key_file {file} can't be read: {error}") from None
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise ConfigError(f"api_key_file {file} holds no key")
        keys += from_file
    return Keys(keys)


def _digest(key: bytes) -> bytes:
    """Of equal length for every key, so that a comparison tells nothing about it."""
    return hashlib.sha256(key).digest()
