"""The FutureMap: sampled tokens that stay on the device until the step that feeds them back.

Addressed by sequence slot. The sampler's tokens are written, the embedding's input gathers from it; both run on the
compute stream in plan order, so a slot needs no flag that says whether its token has arrived.
"""

from __future__ import annotations

import torch
from torch import Tensor


class FutureMap:
    """The newest sampled token of every slot."""

    def __init__(self, num_slots: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.tokens = torch.zeros(num_slots, dtype=torch.int64, device=device)  # [num_slots]

    def write(self, slots: Tensor, tokens: Tensor) -> None:
        """Notes the tokens [R] sampled for the slots [R], which differ from each other. Enqueued, never waits."""
        self.tokens.index_copy_(0, slots.long(), tokens.long())

    def resolve(self, token_ids: Tensor) -> Tensor:
        """The ids [T] with the slot's token for each ~slot. Enqueued, never waits."""
        newest = self.tokens.index_select(0, (~token_ids).clamp_min(0).long())
        return torch.where(token_ids < 0, newest, token_ids.long())
