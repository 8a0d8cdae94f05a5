"""Rotary position embedding: the angles of a step's positions, and their use on queries and keys.

Scaled variants change only the frequencies (and for yarn a factor on cos and sin):
linear, llama3 (Llama 3.1's frequency bands) and yarn (https://arxiv.org/abs/2309.00071).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configs.rope_config import RopeConfig


@dataclass(slots=True)
class Rotation:
    """The angles of one step's positions, computed once for all layers."""

    cos: Tensor  # [T, 1, rotary_dim / 2] float32
    sin: Tensor  # likewise
    rotary_dim: int
    interleaved: bool

    def apply(self, x: Tensor) -> Tensor:
        """The leading `rotary_dim` dimensions of every head of x [T, heads, head_dim], rotated in float32."""
        cos, sin = self.cos, self.sin
        rotated, rest = x[..., : self.rotary_dim], x[..., self.rotary_dim :]
        if self.interleaved:
            first, second = rotated[..., 0::2], rotated[..., 1::2]
            turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)
        else:
            first, second = rotated.chunk(2, dim=-1)
            turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return torch.cat((turned.to(x.dtype), rest), dim=-1)


class Rotary:
    """The rotation of one model."""

    def __init__(self, config: RopeConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.device = torch.device(device)
        self._scale = _attention_factor(config)
        self._frequencies = _frequencies(config).to(device)  # [rotary_dim / 2] float32

    def at(self, positions: Tensor) -> Rotation:
        """The rotation of the positions [T]."""
        angles = torch.outer(positions.to(torch.float32), self._frequencies).unsqueeze(1)
        cos, sin = angles.cos(), angles.sin()
        if self._scale != 1.0:
            cos, sin = cos * self._scale, sin * self._scale
        return Rotation(cos, sin, self.config.rotary_dim, self.config.interleaved)


def _frequencies(config: RopeConfig) -> Tensor:
    exponents = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32) / config.rotary_dim
    plain = 1.0 / (config.theta**exponents)
    if config.type == "linear":
        return plain / config.factor
    if config.type == "llama3":
        return _llama3(plain, config)
    if config.type == "yarn":
        return _yarn(plain, config)
    return plain


def _llama3(plain: Tensor, config: RopeConfig) -> Tensor:
    """Long waves are slowed by `factor`, short ones kept, those between blended."""
    turns = config.original_max_position_embeddings * plain / (2 * math.pi)  # of each wave over the original length
    low, high = config.low_freq_factor, config.high_freq_factor
    share = (turns - low) / (high - low)
    blended = (1 - share) * plain / config.factor + share * plain
    slowed = torch.where(turns < low, plain / config.factor, blended)
    return torch.where(turns > high, plain, slowed)


def _yarn(plain: Tensor, config: RopeConfig) -> Tensor:
    low, high = _yarn_bounds(config)
    ramp = (torch.arange(len(plain), dtype=torch.float32) - low) / (high - low)
    slowed = ramp.clamp(0, 1)
    return plain / config.factor * slowed + plain * (1 - slowed)


def _yarn_bounds(config: RopeConfig) -> tuple[float, float]:
    """Dimensions between which the waves pass from kept to slowed."""

    def dimension(turns: float) -> float:
        length = config.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.rotary_dim * math.log(length) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.rotary_dim - 1)
    return low, high if high != low else high + 0.001


def _attention_factor(config: RopeConfig) -> float:
    if config.type != "yarn":
        return 1.0
    if config.attention_factor is not None:
        return config.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * weight * math.log(config.factor) + 1.0

    if config.mscale and config.mscale_all_dim:
        return mscale(config.mscale) / mscale(config.mscale_all_dim)
    return mscale(1.0)
