"""The sampler: tokens from logits, on the device, without a wait.

`prepare` runs on the host ahead of the device and turns what the step's rows ask for into a few tensors; `sample` is
enqueued; `to_result` runs on the thread that retires steps. A step whose rows are all greedy and ask for nothing
costs one argmax.

The order is vLLM's: log-probabilities of the raw logits; logit bias and the ids that min_tokens forbids; repetition,
frequency and presence penalties; what a grammar allows; then greedy rows take the most likely token (the lowest id of
equals), others divide by the temperature, drop tokens by min_p, top_k and top_p, and draw.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scheduler.mirror import Mirror, StepInput
from ..scheduler.plan import Ints, StepResult
from .draw import DrawStep, draw
from .grammar import Grammars, GrammarStep
from .grammar_compiler import GrammarCompiler
from .logprobs import Scores, Span, score_tokens
from .noise import noise_keys
from .penalties import Penalties, PenaltyStep
from .sampling_table import EDITS, GRAMMAR, LOGPROBS, PENALTIES, RANDOM, SamplingTable
from .staging import download, staged, upload

_EMPTY = np.empty(0, np.int64)


def largest_of(device: torch.device) -> Callable[[Tensor], Tensor]:
    """argmax over the last dimension of [R, V], the lowest id of equals."""
    if device.type != "cuda":
        return partial(torch.argmax, dim=-1)
    from .gpu.largest import Largest  # Triton is only where GPUs are

    return Largest(device)


@dataclass(slots=True)
class EditStep:
    """Single logits that change: B biased, F forbidden."""

    bias_places: Tensor  # [B] int64, flat into [R, V]
    bias: Tensor  # [B] float32
    forbidden_places: Tensor  # [F] int64, flat into [R, V]


@dataclass(slots=True)
class ScoreStep:
    """The rows whose sampled token is scored."""

    rows: Tensor  # [N] int64 into the rows that sample
    spans: list[Span]


@dataclass(slots=True)
class SamplingStep:
    """What one step's sampling needs beyond its logits; None or empty where no row asks."""

    all_random: bool = False
    edits: EditStep | None = None
    penalties: PenaltyStep | None = None
    grammar: GrammarStep | None = None
    draws: list[DrawStep] = field(default_factory=list)
    scores: ScoreStep | None = None

    @property
    def is_greedy(self) -> bool:
        """Whether the largest raw logit of each row is all that is asked for."""
        return not (self.edits or self.penalties or self.grammar or self.draws or self.scores)


_GREEDY_STEP = SamplingStep()


@dataclass(slots=True)
class Sampled:
    """The tokens of one step, in the order of the rows that sample."""

    token_ids: Tensor  # [R] int64
    scores: Scores | None = None

    def to_host(self) -> Sampled:
        """The same in host memory, readable once the copy's event is done. Enqueued, never waits."""
        return Sampled(download(self).token_ids, self.scores and self.scores.to_host())


class Sampler:
    """Samples for every slot of the last stage; holds what must stay on the device between steps.

    `largest` is an argmax over rows, the lowest id of equals, which is all that greedy rows ask for.
    """

    def __init__(
        self, num_slots: int, vocab_size: int, device: torch.device | str, compiler: GrammarCompiler | None = None
    ) -> None:
        """Without a compiler no slot may name a grammar."""
        self.device = torch.device(device)
        self._vocab_size = vocab_size
        self._table = SamplingTable(num_slots, vocab_size)
        self._penalties = Penalties(num_slots, vocab_size, self.device)
        self.grammars = Grammars(compiler, vocab_size, self.device)
        self.largest = largest_of(self.device)
        self._all_ids = torch.arange(vocab_size, dtype=torch.int32, device=self.device)

    def prepare(self, inputs: StepInput, mirror: Mirror) -> SamplingStep:
        """What the step needs. On the host, once for every step and before the mirror applies the next plan."""
        slots = inputs.sample_slots
        self.grammars.release(inputs.plan.released)
        if not inputs.is_steady:  # else every row has sampled before
            for slot in self._table.refresh(slots, mirror):
                self._penalties.register(slot, mirror.sampling[slot], mirror)
                self.grammars.register(slot, mirror.sampling[slot], mirror)
        if not self._table.asking:
            return _GREEDY_STEP
        flags = self._table.flags[slots]
        if not flags.any():
            return _GREEDY_STEP
        positions = inputs.seq_lens[inputs.sample_rows]  # of the tokens to be sampled
        num_generated = positions - mirror.num_prompt[slots]
        asking = {flag: np.flatnonzero(flags & flag) for flag in (RANDOM, EDITS, PENALTIES, GRAMMAR, LOGPROBS)}
        penalised, bound = asking[PENALTIES], asking[GRAMMAR]
        return SamplingStep(
            all_random=len(asking[RANDOM]) == len(slots),
            edits=self._prepare_edits(asking[EDITS], slots, num_generated),
            penalties=self._penalties.prepare(penalised, slots[penalised]) if len(penalised) else None,
            grammar=self.grammars.prepare(bound, slots[bound], num_generated[bound]) if len(bound) else None,
            draws=self._prepare_draws(asking[RANDOM], slots, positions),
            scores=self._prepare_scores(asking[LOGPROBS], inputs, positions),
        )

    @torch.inference_mode()
    def sample(self, logits: Tensor, step: SamplingStep) -> Sampled:
        """Samples the rows of logits [R, V] float32, contiguous, which are overwritten.

        Enqueued, and waits for nothing; with a grammar, on a GPU, for the tokens of its rows' last step.
        """
        scores = upload(step.scores, self.device) if step.scores else None
        raw = logits.index_select(0, scores.rows).log_softmax(-1) if scores else None
        penalties = self._edit(logits, step)
        if step.grammar:
            self.grammars.apply(logits, step.grammar)
        token_ids = logits.new_empty(len(logits), dtype=torch.int64) if step.all_random else self.largest(logits)
        for group in step.draws:
            group = upload(group, self.device)
            token_ids.index_copy_(0, group.rows, draw(logits, group, self._all_ids))
        if penalties:
            self._penalties.add(token_ids, penalties)
        if step.grammar:
            self.grammars.note(token_ids, step.grammar)
        if scores is None or raw is None:
            return Sampled(token_ids)
        return Sampled(token_ids, score_tokens(raw, token_ids.index_select(0, scores.rows), scores.spans))

    @staticmethod
    def to_result(step: int, epoch: int, sampled: Sampled | None, prompt: Scores | None = None) -> StepResult:
        """The step's answer from tensors in host memory, after their copy's event. None: no row sampled."""
        return StepResult(
            step=step,
            token_ids=np.empty(0, np.int32) if sampled is None else sampled.token_ids.numpy().astype(np.int32),
            epoch=epoch,
            logprobs=sampled.scores.to_logprobs() if sampled and sampled.scores else [],
            prompt_logprobs=prompt.to_logprobs() if prompt else [],
        )

    def _edit(self, logits: Tensor, step: SamplingStep) -> PenaltyStep | None:
        if step.edits:
            edits = upload(step.edits, self.device)
            logits.view(-1).index_put_((edits.bias_places,), edits.bias, accumulate=True)
            logits.view(-1).index_fill_(0, edits.forbidden_places, -math.inf)
        if step.penalties is None:
            return None
        penalties = self._penalties.load(step.penalties)
        self._penalties.apply(logits, penalties)
        return penalties

    def _prepare_edits(self, rows: NDArray[np.int64], slots: Ints, num_generated: Ints) -> EditStep | None:
        bias_places, bias, forbidden_places = [_EMPTY], [np.empty(0, np.float32)], [_EMPTY]
        for row in rows:
            edits = self._table.edits[int(slots[row])]
            bias_places.append(row * self._vocab_size + edits.bias_ids)
            bias.append(edits.bias)
            if num_generated[row] < edits.min_tokens:
                forbidden_places.append(row * self._vocab_size + edits.stop_ids)
        if len(bias_places) == 1:
            return None
        columns = (np.concatenate(x) for x in (bias_places, bias, forbidden_places))
        return EditStep(*(staged(x, self.device) for x in columns))

    def _prepare_draws(self, rows: NDArray[np.int64], slots: Ints, positions: Ints) -> list[DrawStep]:
        table, groups = self._table, []
        kinds = table.kinds[slots[rows]]
        for kind in np.unique(kinds):
            members = rows[kinds == kind]
            columns = table.columns[:, slots[members], None]
            keys = noise_keys(table.seeds[slots[members]], positions[members])
            arrays = (staged(x, self.device) for x in (members, keys, columns))
            groups.append(DrawStep(int(kind), bool((columns[1] > -math.inf).any()), *arrays))
        return groups

    def _prepare_scores(self, rows: NDArray[np.int64], inputs: StepInput, positions: Ints) -> ScoreStep | None:
        if not len(rows):
            return None
        num_tops = self._table.num_logprobs[inputs.slots[inputs.sample_rows[rows]]]
        spans = [
            Span(int(plan_row), int(position), 1, int(num_top))
            for plan_row, position, num_top in zip(inputs.sample_rows[rows], positions[rows], num_tops, strict=True)
        ]
        return ScoreStep(staged(rows, self.device), spans)
