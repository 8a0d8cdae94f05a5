"""Sampled tokens wait in their slots until the step that needs them."""

from __future__ import annotations

import torch

from penstock.model.future_map import FutureMap


def test_a_step_finds_the_newest_token_of_each_slot_and_keeps_its_known_tokens() -> None:
    future_map = FutureMap(8, "cpu")
    future_map.write(torch.tensor([5, 2, 7]), torch.tensor([50, 20, 70]))
    future_map.write(torch.tensor([2], dtype=torch.int32), torch.tensor([21]))
    token_ids = torch.tensor([-1, 11, 12, -1], dtype=torch.int32)
    future_map.fill(token_ids, torch.tensor([0, 3], dtype=torch.int32), torch.tensor([2, 5], dtype=torch.int32))
    assert token_ids.tolist() == [21, 11, 12, 50]


def test_a_step_without_tokens_to_fill_stays_as_it_is() -> None:
    future_map, nothing = FutureMap(2, "cpu"), torch.empty(0, dtype=torch.int64)
    token_ids = torch.tensor([4, 5])
    future_map.write(nothing, nothing)
    future_map.fill(token_ids, nothing, nothing)
    assert token_ids.tolist() == [4, 5]
