"""Where what was compiled is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's own; raises OSError for one that others may write to, because what lies in it gets loaded.

    Likewise for a user without a home, as in a container that runs under any number.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "penstock"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise OSError(f"{folder} belongs to another user or is writable by others")
    return folder


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:
        raise OSError(str(error)) from None
