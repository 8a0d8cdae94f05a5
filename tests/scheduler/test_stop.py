"""When a request ends, and with which reason."""

from __future__ import annotations

import pytest

from penstock.scheduler.stop import Ending, StopIds, StopRule, ending

RULE = StopRule(eos_token_ids=(2, 3), stop_token_ids=(3, 7), min_tokens=2)


@pytest.mark.parametrize(
    ("token_id", "num_output", "at_limit", "expected"),
    [
        (5, 9, False, None),
        (5, 9, True, Ending("length")),
        (2, 9, False, Ending("stop")),
        (7, 9, False, Ending("stop", 7)),
        (3, 9, False, Ending("stop")),  # eos goes before a stop token id
        (7, 9, True, Ending("stop", 7)),  # a stop goes before the limit
        (2, 1, False, None),  # min_tokens
        (7, 1, False, None),
        (7, 2, False, Ending("stop", 7)),
        (7, 1, True, Ending("length")),
    ],
)
def test_the_newest_token_decides_the_end(
    token_id: int, num_output: int, at_limit: bool, expected: Ending | None
) -> None:
    assert ending(RULE, token_id, num_output, at_limit) == expected


def test_ids_that_may_stop_somebody_are_counted() -> None:
    ids = StopIds()
    ids.add(RULE)
    ids.add(StopRule(stop_token_ids=(7,)))
    ids.remove(RULE)
    assert ids.any_in([1, 7])
    assert not ids.any_in([1, 2, 3])
