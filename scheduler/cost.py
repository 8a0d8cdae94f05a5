"""What a step costs a stage, in seconds: a roofline fitted to a few measured steps. Pure; no clock.

    cost = overhead + prompt + per_context * C + per_token * max(T, knee)

`T` are the step's tokens, decodes and prompt together. Up to `knee` of them the reading of the weights takes the time
and further tokens are free; above it arithmetic does. `C` are the cached tokens that the decodes read together.
`overhead` comes with every step, `prompt` with every step that holds prompt tokens, where those are launched in another
way than decodes alone. Neglected: what a prompt's tokens read of their own sequence (a hundredth of a chunk of 500
tokens at a prompt's beginning, a fifth of one behind 4000 tokens); the rounding of rows to tiles; sampling beyond what
the measured steps did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_KNEES = 40  # values tried between one token and the largest step
_NO_LIMIT = 1 << 30  # tokens, where they cost nothing


@dataclass(slots=True, frozen=True)
class StepShape:
    """What of a step decides on its cost."""

    num_decodes: int
    context: int  # cached tokens that the decodes read together
    num_prompt_tokens: int = 0


TYPICAL = StepShape(num_decodes=64, context=64 * 400)  # a cohort under load
_MEASURED_ROWS, _MEASURED_LENGTHS = (8, 64, 256), (256, 1024)
_MEASURED_CHUNKS = (32, 128, 512, 2048)
MOST_MEASURED_CONTEXT = max(_MEASURED_ROWS) * max(_MEASURED_LENGTHS)  # cached tokens of a step that is measured


@dataclass(slots=True, frozen=True)
class StepSample:
    """A step that was run."""

    shape: StepShape
    seconds: float


@dataclass(slots=True, frozen=True)
class StepCost:
    """The fitted roofline of one stage; times in seconds."""

    per_token_s: float
    knee_tokens: float
    per_context_s: float
    overhead_s: float
    prompt_s: float = 0.0

    def of(self, num_decodes: float, context: float, num_prompt_tokens: float = 0) -> float:
        """A step's time; fractions are allowed, for a mean of several steps."""
        tokens = max(num_decodes + num_prompt_tokens, self.knee_tokens)
        extra_s = self.prompt_s if num_prompt_tokens else 0.0
        return self.overhead_s + extra_s + self.per_context_s * context + self.per_token_s * tokens

    def of_shape(self, shape: StepShape) -> float:
        """A step's time."""
        return self.of(shape.num_decodes, shape.context, shape.num_prompt_tokens)

    def prompt_tokens_within(self, limit_s: float, num_decodes: int, context: int) -> int:
        """The most prompt tokens beside these decodes for which the step keeps to the limit; 0 where none do."""
        rest_s = limit_s - self.overhead_s - self.prompt_s - self.per_context_s * context
        rest_s += 1e-9 * limit_s  # a limit that is some step's own cost lets that step through
        if rest_s < self.per_token_s * self.knee_tokens:
            return 0
        if self.per_token_s * _NO_LIMIT <= rest_s:
            return _NO_LIMIT
        return max(0, int(rest_s / self.per_token_s) - num_decodes)


def shapes_to_measure(max_num_seqs: int, max_num_batched_tokens: int, max_model_len: int) -> list[StepShape]:
    """Some dozen steps within these limits from which `fit` can tell every term."""
    rows = sorted({min(rows, max_num_seqs, max_num_batched_tokens) for rows in _MEASURED_ROWS})
    lengths = sorted({min(length, max_model_len) for length in _MEASURED_LENGTHS})
    shapes = [StepShape(num, num * length) for num in rows for length in lengths]
    longest = min(max_num_batched_tokens, max_model_len)
    chunks = sorted({min(chunk, longest) for chunk in _MEASURED_CHUNKS})
    shapes += [StepShape(0, 0, chunk) for chunk in chunks]
    beside = rows[len(rows) // 2]
    fitting = [chunk for chunk in chunks if beside + chunk <= max_num_batched_tokens]
    return shapes + [StepShape(beside, beside * lengths[0], chunk) for chunk in fitting]


def fit(samples: Sequence[StepSample]) -> StepCost:
    """The roofline with the least sum of squared relative errors, no term below 0."""
    assert samples, "a cost is fitted to at least one step"
    seconds = np.array([sample.seconds for sample in samples])
    shapes = [sample.shape for sample in samples]
    tokens = np.array([shape.num_decodes + shape.num_prompt_tokens for shape in shapes], np.float64)
    others = np.array([[shape.context, 1, shape.num_prompt_tokens > 0] for shape in shapes], np.float64)
    best: tuple[float, float, Floats] | None = None
    for knee in np.geomspace(1.0, max(2.0, float(tokens.max())), _KNEES):
        columns = np.column_stack((np.maximum(tokens, knee), others)) / seconds[:, None]
        terms, error = least_squares_above_zero(columns, np.ones(len(samples)))
        if best is None or error < best[0]:
            best = (error, float(knee), terms)
    assert best is not None
    _, knee, terms = best
    per_token_s, per_context_s, overhead_s, prompt_s = map(float, terms)
    return StepCost(per_token_s, knee, per_context_s, overhead_s, prompt_s)


def least_squares_above_zero(columns: Floats, target: Floats) -> tuple[Floats, float]:
    """The weights of at least 0 whose sum of columns is nearest to the target, and the squared distance.

    The answer is an ordinary one in some subset of the columns; with as few columns as here, each can be tried.
    """
    num_columns = columns.shape[1]
    best, least = np.zeros(num_columns), float(target @ target)
    for size in range(1, num_columns + 1):
        for chosen in map(list, combinations(range(num_columns), size)):
            scales = np.abs(columns[:, chosen]).max(axis=0)
            if not scales.all():
                continue
            scaled, *_ = np.linalg.lstsq(columns[:, chosen] / scales, target)
            if (scaled < 0).any():
                continue
            off = columns[:, chosen] @ (scaled / scales) - target
            error = float(off @ off)
            if error < least:
                best, least = np.zeros(num_columns), error
                best[chosen] = scaled / scales
    return best, least
