"""Log-probabilities of tokens under the raw logits: of sampled tokens, and of prompts in bounded chunks of rows.

Raw means before bias, penalties, temperature and truncation (vLLM's default, `raw_logprobs`). A token's rank counts
the strictly likelier ones, so that the most likely token has rank 1 also when others tie with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..scheduler.mirror import Mirror, StepInput
from ..scheduler.plan import Floats, Ints, Logprobs
from .staging import download, staged, upload

_CHUNK_ROWS = 256
_CHUNK_ELEMENTS = 1 << 24  # of logits in one chunk: 64 MB in float32


@dataclass(slots=True, frozen=True)
class Span:
    """Which of the scored tokens belong to which row of the plan."""

    row: int  # plan row
    start: int  # position in the sequence of the first token
    num_tokens: int
    num_top: int  # alternatives asked for


@dataclass(slots=True)
class Scores:
    """Scored tokens, k in all, those of one span after those of another."""

    spans: list[Span]
    token_ids: Tensor  # [k] int64
    values: Tensor  # [k] float32
    ranks: Tensor  # [k] int64, 1 is the most likely
    top_ids: Tensor  # [k, most alternatives asked for] int64, most likely first
    top_values: Tensor  # [k, most alternatives asked for] float32

    def to_host(self) -> Scores:
        """The same in host memory, readable once the copy's event is done."""
        return download(self)

    def to_logprobs(self) -> list[Logprobs]:
        """One entry for each span. Only for scores in host memory; takes no part of the step path."""
        ids, ranks, top_ids = (_ints(x) for x in (self.token_ids, self.ranks, self.top_ids))
        values, top_values = _floats(self.values), _floats(self.top_values)
        ends = np.cumsum([span.num_tokens for span in self.spans])
        found = []
        for span, end in zip(self.spans, ends, strict=True):
            k, n = slice(end - span.num_tokens, end), span.num_top
            top = (top_ids[k, :n], top_values[k, :n])
            found.append(Logprobs(span.row, span.start, ids[k], values[k], ranks[k], *top))
        return found


def score_tokens(logprobs: Tensor, token_ids: Tensor, spans: list[Span]) -> Scores:
    """Scores the tokens [k] under log-probabilities [k, V]. Enqueued, never waits."""
    values = logprobs.gather(-1, token_ids.unsqueeze(-1))
    ranks = (logprobs > values).sum(-1).add_(1)
    num_top = min(max(span.num_top for span in spans), logprobs.shape[-1])
    top_values, top_ids = logprobs.topk(num_top, dim=-1)
    return Scores(spans, token_ids, values.squeeze(-1), ranks, top_ids, top_values)


@dataclass(slots=True)
class PromptStep:
    """The prompt tokens that one step scores, k in all."""

    spans: list[Span]
    offsets: Tensor  # [k] int64 into the step's tokens: whose hidden state predicts the token
    targets: Tensor  # [k] int64 the prompt tokens scored


class PromptLogprobs:
    """Scores the prompts of rows that ask for it, chunk by chunk as they are computed.

    The hidden state at position p scores the prompt's token p + 1, so a chunk [a, b) of a prompt of N tokens scores
    a + 1 to min(b, N - 1). A sequence that resumes after a preemption with generated tokens has had its whole prompt
    scored; one preempted within its prompt scores the recomputed part again, and `Logprobs.start` tells.
    """

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._chunk_rows = max(1, min(_CHUNK_ROWS, _CHUNK_ELEMENTS // vocab_size))

    def prepare(self, inputs: StepInput, mirror: Mirror) -> PromptStep | None:
        """What the step scores, or None. On the host, before the mirror applies the next plan."""
        if inputs.is_steady:
            return None
        in_prompt = np.flatnonzero(inputs.starts < mirror.num_prompt[inputs.slots] - 1)
        rows = [int(row) for row in in_prompt if _asks(mirror, int(inputs.slots[row]))]
        if not rows:
            return None
        spans, offsets, targets = zip(*(_span(inputs, mirror, row) for row in rows), strict=True)
        columns = (np.concatenate(x).astype(np.int64) for x in (offsets, targets))
        return PromptStep(list(spans), *(staged(x, self._device) for x in columns))

    @torch.inference_mode()
    def score(self, hidden: Tensor, step: PromptStep, compute_logits: Callable[[Tensor], Tensor]) -> Scores:
        """Scores from hidden states [T, H] through `compute_logits` ([r, H] to [r, V]), a few rows at a time.

        Enqueued, never waits. Every rank of a stage calls `compute_logits` equally often: it follows from the plan.
        """
        on_device = upload(step, self._device)
        widest = [max(step.spans, key=lambda span: span.num_top)]  # every chunk has the same number of columns
        chunks = zip(*(torch.split(x, self._chunk_rows) for x in (on_device.offsets, on_device.targets)), strict=True)
        parts = [
            score_tokens(compute_logits(hidden.index_select(0, offsets)).float().log_softmax(-1), targets, widest)
            for offsets, targets in chunks
        ]
        return replace(_joined(parts), spans=step.spans)


def _asks(mirror: Mirror, slot: int) -> bool:
    resumed = mirror.num_known[slot] > mirror.num_prompt[slot]
    return mirror.sampling[slot].num_prompt_logprobs >= 0 and not resumed


def _span(inputs: StepInput, mirror: Mirror, row: int) -> tuple[Span, Ints, Ints]:
    slot, start = int(inputs.slots[row]), int(inputs.starts[row])
    end = min(int(inputs.seq_lens[row]), int(mirror.num_prompt[slot]) - 1)
    tokens = mirror.token_ids[slot]
    assert tokens is not None, f"slot {slot} has a row but no tokens"
    offset = int(inputs.query_starts[row])
    span = Span(row, start + 1, end - start, mirror.sampling[slot].num_prompt_logprobs)
    return span, np.arange(offset, offset + end - start, dtype=np.int32), tokens[start + 1 : end + 1]


def _joined(parts: list[Scores]) -> Scores:
    if len(parts) == 1:
        return parts[0]
    columns = ((p.token_ids, p.values, p.ranks, p.top_ids, p.top_values) for p in parts)
    return Scores([], *(torch.cat(column) for column in zip(*columns, strict=True)))


def _ints(tensor: Tensor) -> Ints:
    return tensor.numpy().astype(np.int32)


def _floats(tensor: Tensor) -> Floats:
    return tensor.numpy().astype(np.float32, copy=False)
