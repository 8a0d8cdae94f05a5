"""Structured output: what each sequence's grammar allows next, as a mask on its logits.

A slot that asks gets a matcher when its sequence samples first, advanced by what was generated before a preemption;
from then on the matcher follows the tokens sampled, one step behind: right before a step's mask is filled, its rows
take in the tokens of their last step. All of that runs where the sampler is enqueued, in plan order. On a CPU those
tokens are there. On a GPU they travel to the host behind the sampler, and the thread that enqueues waits for them,
behind the layers of the new step, which the device computes meanwhile; steps without a grammar never wait.

What ends a grammar is an eos token and nothing else. A sequence whose grammar has ended, or can't go on, may only say
eos from then on: past its end (a step was in flight, or eos is ignored) that does no harm. min_tokens forbids its ids
as long as the grammar allows another.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..scheduler.mirror import Mirror
from ..scheduler.plan import Ints, Sampling
from .grammar_compiler import GrammarCompiler
from .staging import download, staged, upload
from .tiles import tiles

if TYPE_CHECKING:
    from xgrammar import BatchGrammarMatcher, GrammarMatcher

log = logging.getLogger(__name__)

Words = NDArray[np.uint32]  # a mask: 32 tokens a word, the lowest id in the lowest bit


@dataclass(slots=True)
class NewOwner:
    """A sequence whose matcher starts with this step."""

    slot: int
    sampling: Sampling
    generated: list[int]  # known already: it resumes


@dataclass(slots=True)
class GrammarStep:
    """The G rows of a step that have a grammar."""

    released: list[int]  # slots whose sequences have ended since the last such step
    owners: list[NewOwner]
    slots: list[int]  # [G]
    num_generated: list[int]  # [G] tokens before the one to be sampled
    rows: Tensor  # [G] int64 into the rows that sample


@dataclass(slots=True)
class _MaskStep:
    rows: Tensor  # [G] int64 into the rows that sample
    masks: Tensor  # [G, W] int32, see Words


@dataclass(slots=True)
class _Copied:
    token_ids: Tensor  # [G]


class _Sampled:
    """The tokens of one step's rows on their way to the host."""

    def __init__(self, token_ids: Tensor) -> None:
        self._token_ids = download(_Copied(token_ids)).token_ids
        self._arrived: torch.cuda.Event | None = None
        if token_ids.is_cuda:
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self, index: int) -> int:
        """One of them; waits for the copy."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return int(self._token_ids[index])


class _Follower:
    """One sequence's matcher."""

    def __init__(self, matcher: GrammarMatcher, owner: NewOwner, stop_mask: Words) -> None:
        self.next: tuple[_Sampled, int] | None = None  # sampled, and not yet taken in
        self.matcher = matcher
        self._min_tokens = owner.sampling.min_tokens
        self._stop_mask = stop_mask  # what min_tokens forbids
        self._is_lost = False
        for token_id in owner.generated:
            self._accept(token_id)

    @property
    def is_live(self) -> bool:
        """Whether its grammar has not ended."""
        return not (self._is_lost or self.matcher.is_terminated())

    def catch_up(self) -> None:
        """Takes in the token of its last step."""
        if self.next is not None:
            (tokens, index), self.next = self.next, None
            self._accept(tokens.read(index))

    def forbid(self, allowed: Words, num_generated: int) -> None:
        """Takes out of what the grammar allows what min_tokens forbids, unless that is all."""
        if num_generated < self._min_tokens:
            others = allowed & ~self._stop_mask
            if others.any():
                allowed[:] = others

    def _accept(self, token_id: int) -> None:
        if self.is_live and not self.matcher.accept_token(token_id):
            self._is_lost = True
            log.warning("token %d is not what the grammar allows: the text ends here", token_id)


class Grammars:
    """Matchers of the slots whose sampling names a grammar."""

    def __init__(self, compiler: GrammarCompiler | None, vocab_size: int, device: torch.device) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._device = device
        self._followers: dict[int, _Follower] = {}  # by slot; touched where the sampler is enqueued, in plan order
        self._bound = set[int]()  # slots with a follower, or soon; this and the next two on the host
        self._released: list[int] = []
        self._owners: list[NewOwner] = []
        self._every = _words_of(range(vocab_size), vocab_size)
        self._eos = _words_of(compiler.eos_token_ids if compiler else [], vocab_size)
        self._bits = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8, device=device)
        self._filler: BatchGrammarMatcher | None = None  # since the first grammar

    def release(self, slots: Ints) -> None:
        """Their sequences have ended: what they hold goes with the next step that has a grammar. On the host."""
        if self._bound:
            gone = self._bound.intersection(slots.tolist())
            self._bound -= gone
            self._released += gone

    def register(self, slot: int, sampling: Sampling, mirror: Mirror) -> None:
        """The slot has a new owner; its matcher is made with the next step that has a row of it. On the host."""
        if sampling.grammar:
            tokens = mirror.token_ids[slot]
            assert tokens is not None, f"slot {slot} samples but has no tokens"
            self._owners.append(NewOwner(slot, sampling, tokens[mirror.num_prompt[slot] :].tolist()))
            self._bound.add(slot)

    def prepare(self, rows: NDArray[np.int64], slots: Ints, num_generated: Ints) -> GrammarStep:
        """The step's part for `rows` (of those that sample), their slots and lengths. On the host."""
        released, self._released = self._released, []
        owners, self._owners = self._owners, []
        return GrammarStep(released, owners, slots.tolist(), num_generated.tolist(), staged(rows, self._device))

    def apply(self, logits: Tensor, step: GrammarStep) -> None:
        """Leaves of the step's rows of logits [R, V] only what their grammars allow, in place."""
        for slot in step.released:
            del self._followers[slot]
        for owner in step.owners:
            self._followers[owner.slot] = self._follow(owner)
        followers = [self._followers[slot] for slot in step.slots]
        for follower in followers:
            follower.catch_up()
        masks = staged(self._allowed(followers, step.num_generated), self._device)
        self._mask(logits, upload(_MaskStep(step.rows, masks), self._device))

    def warm(self, logits: Tensor) -> None:
        """Masks every row of logits [R, V], forbidding nothing."""
        masks = np.full((len(logits), len(self._every)), -1, np.int32)
        step = _MaskStep(staged(np.arange(len(logits)), self._device), staged(masks, self._device))
        self._mask(logits, upload(step, self._device))

    def note(self, token_ids: Tensor, step: GrammarStep) -> None:
        """Remembers the tokens [R] sampled of the step's rows. Enqueued, never waits."""
        rows = step.rows.to(self._device, non_blocking=True)
        tokens = _Sampled(token_ids.index_select(0, rows))
        for index, slot in enumerate(step.slots):
            self._followers[slot].next = (tokens, index)

    def _follow(self, owner: NewOwner) -> _Follower:
        from xgrammar import BatchGrammarMatcher, GrammarMatcher

        assert self._compiler is not None, f"slot {owner.slot} has a grammar, but nothing compiles it"
        self._filler = self._filler or BatchGrammarMatcher(self._compiler.num_threads)
        matcher = GrammarMatcher(self._compiler.compile(owner.sampling.grammar))
        return _Follower(matcher, owner, _words_of(owner.sampling.stop_token_ids, self._vocab_size))

    def _allowed(self, followers: list[_Follower], num_generated: list[int]) -> NDArray[np.int32]:
        """What may come next, [G, W], see Words; never nothing."""
        assert self._filler is not None
        masks = np.full((len(followers), len(self._every)), -1, np.int32)
        live = [index for index, follower in enumerate(followers) if follower.is_live]
        matchers = [followers[index].matcher for index in live]
        if matchers:
            self._filler.batch_fill_next_token_bitmask(matchers, torch.from_numpy(masks), live)
        words = masks.view(np.uint32)
        words &= self._every  # what stands behind the vocabulary is no choice
        for index, (row, follower) in enumerate(zip(words, followers, strict=True)):
            follower.forbid(row, num_generated[index])
            if not row.any() or not follower.is_live:
                row[:] = self._eos
        words |= ~self._every  # as matchers have it: xgrammar's kernel looks for the next 0 before it looks for the end
        return masks

    def _mask(self, logits: Tensor, step: _MaskStep) -> None:
        if self._device.type == "cpu":
            from xgrammar import apply_token_bitmask_inplace

            for row, mask in zip(step.rows.tolist(), step.masks, strict=True):
                apply_token_bitmask_inplace(logits[row], mask, vocab_size=self._vocab_size, backend="cpu")
        else:
            mask_by_bits(logits, step.rows, step.masks.view(torch.uint8), self._bits)


def mask_by_bits(logits: Tensor, rows: Tensor, masks: Tensor, bits: Tensor) -> None:
    """Rows [G] of logits [R, V] become minus infinity where masks [G, 4 W] uint8 have no bit. Enqueued, never waits.

    bits [8] uint8 are the powers of 2.
    """
    for some, their_masks in tiles(logits.shape[-1], rows, masks):
        forbidden = (their_masks.unsqueeze(-1) & bits).flatten(1)[:, : logits.shape[-1]] == 0
        logits.index_copy_(0, some, logits.index_select(0, some).masked_fill_(forbidden, -math.inf))


def _words_of(token_ids: Sequence[int], vocab_size: int) -> Words:
    """The mask of these tokens; ids outside the vocabulary have no bit."""
    bits = np.zeros(-(-vocab_size // 32) * 32, np.uint8)
    bits[[token_id for token_id in token_ids if 0 <= token_id < vocab_size]] = 1
    return np.packbits(bits, bitorder="little").view("<u4")
