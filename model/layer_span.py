"""A stage's share of the layers, in halves: a layer's attention and its MLP may be on two stages.

Between the halves lies what lies between layers, the hidden state with every residual added, so a pipeline may be cut
there as well: stages come nearer to equal cost than whole layers allow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True, frozen=True)
class LayerSpan:
    """Halves `start` to `stop`, the latter excluded: half 2 i is the attention of layer i, half 2 i + 1 its MLP."""

    start: int
    stop: int

    @classmethod
    def of(cls, layers: range) -> LayerSpan:
        """Whole layers."""
        return cls(2 * layers.start, 2 * layers.stop)

    @classmethod
    def in_turn(cls, counts: Iterable[float]) -> list[LayerSpan]:
        """One after the other, of so many layers each; multiples of a half."""
        spans, start = [], 0
        for count in counts:
            spans.append(cls(start, start + int(2 * count)))
            start = spans[-1].stop
        return spans

    @property
    def attentions(self) -> range:
        """Layers whose attention is here."""
        return range((self.start + 1) // 2, (self.stop + 1) // 2)

    @property
    def mlps(self) -> range:
        """Layers whose MLP is here."""
        return range(self.start // 2, self.stop // 2)

    @property
    def halves(self) -> list[tuple[int, bool]]:
        """In order: of which layer each is, and whether it is its MLP."""
        return [(half // 2, half % 2 == 1) for half in range(self.start, self.stop)]

    def ends_with(self, num_layers: int) -> bool:
        """Whether the last of so many layers ends here."""
        return self.stop == 2 * num_layers

    @property
    def num_layers(self) -> float:
        """In all."""
        return (self.stop - self.start) / 2
