"""What Ray raises, said in our own words."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from ..errors import EngineDeadError, PenstockError


def first_line(error: BaseException) -> str:
    """Ray's messages without the stacks that follow."""
    return str(error).strip().partition("\n")[0]


def own_error(error: RayTaskError, label: str) -> PenstockError:
    """What a Ray call raised there, in our own words: our errors as they are, others with the place they came from."""
    cause = error.cause
    if isinstance(cause, PenstockError):
        return cause
    return EngineDeadError(f"{label}: {type(cause).__name__}: {cause}")
