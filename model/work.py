"""One step's tensors on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..scheduler.mirror import StepInput
from .batch import Batch
from .logprobs import PromptStep, Scores
from .sampler import Sampled, SamplingStep


@dataclass(slots=True)
class StepWork:
    """One step's tensors on one rank, from `prepare` until it has retired."""

    inputs: StepInput
    batch: Batch
    future_offsets: Tensor | None = None  # [F] places of token_ids that the FutureMap fills
    future_slots: Tensor | None = None  # [F]
    incoming: Tensor | None = None  # [T, H] link buffer
    returned: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (slots [R], tokens [R]) for the FutureMap
    hidden: Tensor | None = None  # [T, H] what the layers gave
    outgoing: Tensor | None = None  # [T, H] link buffer
    sampling: SamplingStep | None = None
    sample_offsets: Tensor | None = None  # [R] rows of hidden that are sampled
    sample_slots: Tensor | None = None  # [R]
    sampled: Sampled | None = None
    prompt: PromptStep | None = None
    prompt_scores: Scores | None = None
