"""What the stages have, as it is logged when the engine is ready; and which of them is planned for."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from penstock.actors.engine_spec import StageFigures
from penstock.actors.stage_table import slowest_step_cost, stage_table
from penstock.model.layer_span import LayerSpan
from penstock.scheduler.cost import StepCost

GIB = 1 << 30
FIRST = StageFigures(0, 0, LayerSpan(0, 20), 1000, weight_bytes=4 * GIB, cache_bytes=20 * GIB, build_s=7.25)
LAST = StageFigures(1, 0, LayerSpan(20, 34), 1000, weight_bytes=3 * GIB, cache_bytes=14 * GIB, build_s=6.0)
COST = StepCost(per_token_s=9e-6, knee_tokens=100.0, per_context_s=0.0, overhead_s=1e-4)


def test_each_stage_has_a_line_with_what_it_holds() -> None:
    assert [re.split("  +", line.strip()) for line in stage_table([FIRST, LAST], 17).splitlines()] == [
        ["stage", "layers", "weights GiB", "cache GiB", "s to ready"],
        ["0", "embedding, 0-9", "4.00", "20.00", "7.2"],
        ["1", "10-16, head", "3.00", "14.00", "6.0"],
    ]
    assert "embedding, 0-9, head" in stage_table([FIRST], 10)
    assert "  16, head  " in stage_table([replace(LAST, span=LayerSpan(32, 34))], 17)


@pytest.mark.parametrize(
    ("halves", "shown"),
    [
        ((0, 19), "embedding, 0-8, attention of 9"),
        ((19, 23), "MLP of 9, 10, attention of 11"),
        ((19, 21), "MLP of 9, attention of 10"),
        ((23, 34), "MLP of 11, 12-16, head"),
    ],
)
def test_a_layer_between_two_stages_is_on_both_lines(halves: tuple[int, int], shown: str) -> None:
    assert re.split("  +", stage_table([replace(FIRST, span=LayerSpan(*halves))], 17).splitlines()[1])[2] == shown


def test_ranks_share_a_line_and_the_slowest_tells_its_times() -> None:
    slower = replace(COST, overhead_s=3e-4)
    other = replace(FIRST, tp_rank=1, build_s=9.0, step_cost=slower)
    table = stage_table([replace(FIRST, step_cost=COST), other, LAST], 17).splitlines()
    assert len(table) == 3
    assert "ms for 64 decodes" in table[0]
    assert table[1].split()[-2:] == ["1.20", "9.0"]
    assert table[2].split()[-2:] == ["-", "6.0"]
    assert slowest_step_cost([replace(FIRST, step_cost=COST), other]) == slower
    assert slowest_step_cost([FIRST, LAST]) is None
