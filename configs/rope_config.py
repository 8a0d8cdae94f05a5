"""How positions are rotated into queries and keys, read from either form of `config.json`.

The older form has `rope_theta` and `rope_scaling` (whose kind is named `rope_type` or `type`); the newer has all in
`rope_parameters`. A `rope_scaling` that was added to the newer form scales what that has, its theta kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from ..errors import ModelError
from .architectures import Architecture
from .json_fields import Fields

RopeType = Literal["default", "linear", "llama3", "yarn"]


@dataclass(slots=True, frozen=True)
class RopeConfig:
    """Rotary position embedding. Fields that a type doesn't use keep their defaults."""

    theta: float
    rotary_dim: int  # of each head, the leading dimensions that are rotated
    interleaved: bool = False
    type: RopeType = "default"
    factor: float = 1.0  # linear, llama3, yarn
    original_max_position_embeddings: int = 0  # llama3, yarn
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn: scales cos and sin; None: from `factor` or the mscales
    mscale: float | None = None  # yarn
    mscale_all_dim: float | None = None  # yarn
    truncate: bool = True  # yarn: the ramp's bounds are rounded to whole dimensions


def read_rope(fields: Fields, arch: Architecture, head_dim: int) -> RopeConfig:
    """The rotation that a config.json asks for. Raises ModelError for a type that isn't served."""
    rope = _rotation(fields)
    kind = rope.text("rope_type", "default")
    if kind not in get_args(RopeType):
        raise ModelError(f"{rope.source}: rope type {kind!r} isn't served; known are {', '.join(get_args(RopeType))}")
    if any(isinstance(value, dict) for value in rope.values.values()):
        raise ModelError(f"{rope.source}: a rotation for each layer type isn't served")
    theta = rope.number("rope_theta", fields.number("rope_theta", 10000.0))
    rotary_dim = int(head_dim * _rotated_share(fields, rope, arch))
    if rotary_dim < 2 or rotary_dim % 2:
        raise ModelError(f"{rope.source}: {rotary_dim} rotated dimensions of a head; an even number from 2 is needed")
    if kind == "default":
        return RopeConfig(theta, rotary_dim, arch.interleaved_rope)
    reach = fields.integer("max_position_embeddings", arch.default_max_positions)
    original = fields.integer("original_max_position_embeddings", reach)
    return RopeConfig(
        theta,
        rotary_dim,
        arch.interleaved_rope,
        cast(RopeType, kind),
        factor=rope.number("factor"),
        original_max_position_embeddings=rope.integer("original_max_position_embeddings", original),
        low_freq_factor=rope.number("low_freq_factor", 1.0),
        high_freq_factor=rope.number("high_freq_factor", 4.0),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        attention_factor=rope.optional_number("attention_factor"),
        mscale=rope.optional_number("mscale"),
        mscale_all_dim=rope.optional_number("mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


def _rotation(fields: Fields) -> Fields:
    """What either form says, or both; raises ModelError where both scale and not alike."""
    newer, older = (_with_kind(fields.inner(name)) for name in ("rope_parameters", "rope_scaling"))
    if not newer or not older:
        return Fields(f"{fields.source} ({'rope_parameters' if newer else 'rope_scaling'})", newer or older)
    if newer.get("rope_type", "default") != "default":
        for name in newer.keys() & older.keys():
            if newer[name] != older[name]:
                raise ModelError(
                    f"{fields.source}: {name} is {older[name]!r} in rope_scaling and {newer[name]!r} in rope_parameters"
                )
    return Fields(f"{fields.source} (rope_parameters and rope_scaling)", newer | older)


def _with_kind(rope: Fields) -> dict[str, Any]:
    """The fields that are there, the kind under its newer name."""
    values = {name: value for name, value in rope.values.items() if value is not None}
    kind = values.pop("type", None)
    return values if kind is None else {"rope_type": kind} | values


def _rotated_share(fields: Fields, rope: Fields, arch: Architecture) -> float:
    default = 1.0 if arch.partial_rotary is None else arch.partial_rotary
    share = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", default))
    if arch.partial_rotary is None and share != 1.0:
        raise ModelError(f"{fields.source}: partial_rotary_factor is {share}; {arch.name} is served with 1 only")
    return share
