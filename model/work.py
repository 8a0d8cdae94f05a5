"""One step's tensors on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..scheduler.device import Event
from ..scheduler.mirror import StepInput
from ..scheduler.plan import Ints
from .batch import Batch
from .logprobs import PromptStep, Scores
from .ring import RingPlace
from .sampler import Sampled, SamplingStep


@dataclass(slots=True)
class StepWork:
    """One step's tensors on one rank, from `prepare` until it has retired."""

    inputs: StepInput
    batch: Batch | None = None  # where the launcher wants one before the compute lane
    returned: list[tuple[Ints, RingPlace]] = field(default_factory=list)  # slots [R] and their tokens [R], in order
    incoming: RingPlace | None = None  # [T, H]
    outgoing: RingPlace | None = None  # [T, H]
    hidden: Tensor | None = None  # [T, H] what the layers gave; read before the next step's layers
    sampling: SamplingStep | None = None
    tokens: RingPlace | None = None  # [R] where the launcher leaves greedy tokens
    sampled: Sampled | None = None
    tokens_sent: Event | None = None  # on the last of several stages
    prompt: PromptStep | None = None
    prompt_scores: Scores | None = None
