"""The device memory through which a stage's steps reach other stages and later steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..scheduler.mirror import MAX_RETURNS
from .future_map import FutureMap
from .launch import StepLimits
from .ring import Ring

NUM_LINK_BUFFERS = 2


@dataclass(slots=True, frozen=True)
class Exchange:
    """What a stage lacks is None."""

    future_map: FutureMap | None = None  # first stage
    returned: Ring | None = None  # first of several: token messages [MAX_RETURNS, max_num_seqs] int64
    incoming: Ring | None = None  # a later stage: hidden states [NUM_LINK_BUFFERS, most tokens of a step, H]
    outgoing: Ring | None = None  # an earlier stage: likewise

    @classmethod
    def of(cls, limits: StepLimits, device: torch.device, *, first: bool, last: bool) -> Exchange:
        """For a stage that is the first, or the last, or both, or neither."""
        shape = (NUM_LINK_BUFFERS, limits.max_num_batched_tokens, limits.hidden_size)
        messages = (MAX_RETURNS, limits.max_num_seqs)
        return cls(
            future_map=FutureMap(limits.max_num_seqs, device) if first else None,
            returned=Ring(torch.zeros(messages, dtype=torch.int64, device=device)) if first and not last else None,
            incoming=None if first else Ring(torch.zeros(shape, dtype=limits.dtype, device=device)),
            outgoing=None if last else Ring(torch.zeros(shape, dtype=limits.dtype, device=device)),
        )
