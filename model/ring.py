"""Buffers used in turn, each written again only behind the events of its last use: never by a host wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ..scheduler.device import Event


@dataclass(slots=True, frozen=True)
class RingPlace:
    """One step's buffer."""

    turn: int
    length: int
    whole: Tensor

    @property
    def buffer(self) -> Tensor:
        """[as many as were asked for, ...]"""
        return self.whole[: self.length]


class Ring:
    """Equal buffers [number, length, ...]."""

    def __init__(self, buffers: Tensor) -> None:
        self.buffers = buffers
        self._each = buffers.unbind()
        self._used: list[Sequence[Event]] = [()] * len(buffers)
        self._turn = -1

    def take(self, length: int) -> tuple[RingPlace, Sequence[Event]]:
        """The next buffer's first part, and what must be over before it is written."""
        self._turn = (self._turn + 1) % len(self._used)
        return RingPlace(self._turn, length, self._each[self._turn]), self._used[self._turn]

    def used(self, place: RingPlace, *until: Event) -> None:
        """The buffer may be written again when these events have happened."""
        self._used[place.turn] = until
