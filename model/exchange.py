"""The device memory through which a stage's steps reach other stages and later steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .future_map import FutureMap
from .limits import StepLimits
from .ring import Ring

NUM_LINK_BUFFERS = 2
NUM_SAMPLED = 32  # at least: more than steps can be un-retired, so that the host has read one before it comes again


@dataclass(slots=True, frozen=True)
class Exchange:
    """What a stage lacks is None."""

    future_map: FutureMap | None = None  # first stage
    returned: Ring | None = None  # first of several: token messages [as many as a step may receive, max_num_seqs] int64
    incoming: Ring | None = None  # a later stage: hidden states [NUM_LINK_BUFFERS, most tokens of a step, H]
    outgoing: Ring | None = None  # an earlier stage: likewise
    sampled: Ring | None = None  # last stage on a GPU: greedy tokens [steps, max_num_seqs] int64
    host_sampled: Tensor | None = None  # the same in pinned memory, written by the device: readable behind the step

    @classmethod
    def of(
        cls, limits: StepLimits, device: torch.device, *, first: bool, last: bool, max_unretired: int = 2
    ) -> Exchange:
        """For a stage that is the first, or the last, or both, or neither; and so many un-retired steps at most."""
        shape = (NUM_LINK_BUFFERS, limits.max_num_batched_tokens, limits.hidden_size)
        messages = (max_unretired + 1, limits.max_num_seqs)  # see Mirror
        tokens = (max(NUM_SAMPLED, max_unretired + 1), limits.max_num_seqs)
        keeps = last and device.type == "cuda"
        return cls(
            future_map=FutureMap(limits.max_num_seqs, device) if first else None,
            returned=Ring(torch.zeros(messages, dtype=torch.int64, device=device)) if first and not last else None,
            incoming=None if first else Ring(torch.zeros(shape, dtype=limits.dtype, device=device)),
            outgoing=None if last else Ring(torch.zeros(shape, dtype=limits.dtype, device=device)),
            sampled=Ring(torch.zeros(tokens, dtype=torch.int64, device=device)) if keeps else None,
            host_sampled=torch.zeros(tokens, dtype=torch.int64, pin_memory=True) if keeps else None,
        )
