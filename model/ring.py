"""Buffers used in turn, each written again only behind the events of its last use: never by a host wait."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..scheduler.device import Event


@dataclass(slots=True, frozen=True)
class RingPlace:
    """One step's buffer."""

    turn: int
    buffer: Tensor  # [as many as were asked for, ...]


class Ring:
    """Equal buffers [number, length, ...]."""

    def __init__(self, buffers: Tensor) -> None:
        self.buffers = buffers
        self._used: list[Event | None] = [None] * len(buffers)
        self._turn = -1

    def take(self, length: int) -> tuple[RingPlace, list[Event]]:
        """The next buffer's first part, and what must be over before it is written."""
        self._turn = (self._turn + 1) % len(self._used)
        last = self._used[self._turn]
        return RingPlace(self._turn, self.buffers[self._turn, :length]), [] if last is None else [last]

    def used(self, place: RingPlace, until: Event) -> None:
        """The buffer may be written again when the event has happened."""
        self._used[place.turn] = until
