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

    def fill(self, token_ids: Tensor, offsets: Tensor, slots: Tensor) -> None:
        """Puts the tokens of the slots [F] into a step's token_ids [T] at the offsets [F]. Enqueued, never waits."""
        token_ids.index_copy_(0, offsets.long(), self.tokens.index_select(0, slots.long()).to(token_ids.dtype))
