"""Steps of given shapes through a stage that is ready but for its plans, to measure what a step costs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...scheduler.cost import StepCost, StepShape, fit, shapes_to_measure
from ...scheduler.mirror import Mirror, StepInput
from ...scheduler.plan import Registration, StepPlan, ints
from ..decoder import StageModule
from ..launch import Launcher
from ..limits import StepLimits
from ..sampler import largest_of
from ..work import StepWork
from .measure import measure_steps


class TrialSteps:
    """Runs steps whose sequences nobody has asked for; what they leave in the cache, nobody reads."""

    def __init__(self, module: StageModule, launcher: Launcher, limits: StepLimits, num_blocks: int) -> None:
        self._module = module
        self._launcher = launcher
        self._limits = limits
        self._num_blocks = num_blocks
        self._largest = largest_of(module.rotary.device)
        self._inputs: dict[StepShape, StepInput] = {}

    def fits(self, shape: StepShape) -> bool:
        """Whether slots and cache hold such a step."""
        lengths = self._lengths(shape)
        blocks = sum(-(-length // self._limits.block_size) for length in lengths)
        return 0 < len(lengths) <= self._limits.max_num_seqs and blocks <= self._num_blocks

    @torch.inference_mode()
    def run(self, shape: StepShape) -> None:
        """Enqueues one step, on the last stage with the head and greedy sampling."""
        module = self._module
        is_new = shape not in self._inputs
        if is_new:
            self._inputs[shape] = self._make(shape)
        inputs = self._inputs[shape]
        work = StepWork(inputs)
        self._launcher.prepare(work)
        self._launcher.run(work)
        if module.lm_head is not None and not self._launcher.greedy(work):
            module.likeliest(self._launcher.rows(work), self._largest)
        if module.lm_head is not None and is_new:  # as behind other sampling, whose kernel is compiled with that
            tokens = torch.zeros(len(inputs.sample_rows), dtype=torch.int64, device=module.rotary.device)
            self._launcher.feed_back(work, tokens)

    def _lengths(self, shape: StepShape) -> list[int]:
        """Of each row's sequence, the step's tokens included."""
        decodes = [max(1, shape.context // shape.num_decodes)] * shape.num_decodes if shape.num_decodes else []
        return decodes + [shape.num_prompt_tokens] * (shape.num_prompt_tokens > 0)

    def _make(self, shape: StepShape) -> StepInput:
        counts = [1] * shape.num_decodes + [shape.num_prompt_tokens] * (shape.num_prompt_tokens > 0)
        return step_of(self._lengths(shape), counts, self._limits)


def step_of(lengths: Sequence[int], counts: Sequence[int], limits: StepLimits) -> StepInput:
    """A step of sequences that end at these lengths, so many tokens of each being new; blocks are given out in turn."""
    size, rows = limits.block_size, list(range(len(lengths)))
    new = [
        Registration(row, 0, length - count, length, ints([0] * length))
        for row, length, count in zip(rows, lengths, counts, strict=True)
    ]
    blocks = [row for row, length in enumerate(lengths) for _ in range(-(-length // size))]
    ids = ints(list(range(len(blocks))))
    plan = StepPlan(0, ints(rows), ints(list(counts)), registrations=new, block_slots=ints(blocks), block_ids=ids)
    return Mirror(len(rows), limits.max_blocks_per_seq, size).apply(plan)


def measure_cost(module: StageModule, launcher: Launcher, limits: StepLimits, num_blocks: int) -> StepCost | None:
    """What this rank's steps cost; None where not even a step of one decode fits."""
    steps = TrialSteps(module, launcher, limits, num_blocks)
    shapes = shapes_to_measure(limits.max_num_seqs, limits.max_num_batched_tokens, limits.max_model_len)
    fitting = [shape for shape in shapes if steps.fits(shape)]
    return fit(measure_steps(steps.run, fitting)) if fitting else None
