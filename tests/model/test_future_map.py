"""Sampled tokens wait in their slots until the step that needs them."""

from __future__ import annotations

import torch

from penstock.model.future_map import FutureMap


def test_a_step_finds_the_newest_token_of_each_slot_and_keeps_its_known_tokens() -> None:
    future_map = FutureMap(8, "cpu")
    future_map.write(torch.tensor([5, 2, 7]), torch.tensor([50, 20, 70]))
    future_map.write(torch.tensor([2], dtype=torch.int32), torch.tensor([21]))
    for dtype in (torch.int32, torch.int64):
        token_ids = torch.tensor([~2, 11, 0, ~5, ~0], dtype=dtype)
        assert future_map.resolve(token_ids).tolist() == [21, 11, 0, 50, 0]
        assert future_map.resolve(token_ids).dtype == torch.int64


def test_a_step_without_tokens_to_fill_stays_as_it_is() -> None:
    future_map, nothing = FutureMap(2, "cpu"), torch.empty(0, dtype=torch.int64)
    future_map.write(nothing, nothing)
    assert future_map.resolve(torch.tensor([4, 5])).tolist() == [4, 5]
    assert future_map.resolve(nothing).tolist() == []
