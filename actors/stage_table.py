"""What the stages of an engine have and take, as a table for people; and which of them sets the pace."""

from __future__ import annotations

from collections.abc import Sequence

from ..scheduler.cost import TYPICAL, StepCost
from .engine_spec import StageFigures

_GIB = 1 << 30


def slowest_step_cost(ranks: Sequence[StageFigures]) -> StepCost | None:
    """The cost of the rank whose typical step takes longest; None where no rank measured it."""
    measured = [rank.step_cost for rank in ranks if rank.step_cost is not None]
    return max(measured, key=_typical_s, default=None)


def stage_table(ranks: Sequence[StageFigures], num_layers: int) -> str:
    """A line for each stage; where ranks share one, sizes are a rank's and times the slowest one's."""
    step = [f"ms for {TYPICAL.num_decodes} decodes"] if slowest_step_cost(ranks) else []
    rows = [["stage", "layers", "weights GiB", "cache GiB", *step, "s to ready"]]
    for index in sorted({rank.stage_idx for rank in ranks}):
        of_stage = [rank for rank in ranks if rank.stage_idx == index]
        cost = slowest_step_cost(of_stage)
        rows.append(
            [
                str(index),
                _layers(of_stage[0], num_layers),
                f"{max(rank.weight_bytes for rank in of_stage) / _GIB:.2f}",
                f"{max(rank.cache_bytes for rank in of_stage) / _GIB:.2f}",
                *([f"{_typical_s(cost) * 1000:.2f}" if cost else "-"] if step else []),
                f"{max(rank.build_s for rank in of_stage):.1f}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines)


def _layers(rank: StageFigures, num_layers: int) -> str:
    span = rank.span
    whole = range(span.attentions.start, span.mlps.stop)
    parts = ["embedding"] if span.start == 0 else []
    if span.mlps.start < whole.start:
        parts.append(f"MLP of {span.mlps.start}")
    if whole:
        parts.append(f"{whole.start}-{whole.stop - 1}" if len(whole) > 1 else f"{whole.start}")
    if span.attentions.stop > whole.stop:
        parts.append(f"attention of {whole.stop}")
    return ", ".join([*parts, "head"] if span.ends_with(num_layers) else parts)


def _typical_s(cost: StepCost) -> float:
    return cost.of_shape(TYPICAL)
