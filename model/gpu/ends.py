"""The two ends of a step on the device, so that a graph holds the whole step: nothing here needs the host.

At the beginning blocks granted and tokens returned since the last step are taken in, and the step's tokens and block
tables are gathered by slot; at the end the hidden states go to where the link sends from, or the sampled tokens into
the FutureMap. How much there is of each stands in the step's header, where the host has put it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .columns import CHANGES, INCOMING, OUTGOING, RETURNS, SAMPLED, SAMPLES, STEADY, TOKENS, Places

_PROGRAMS, _BLOCK = 8, 128  # of what comes as lists
_WIDE = 1024  # elements of a hidden state at a time
_CHANGES, _RETURNS, _TOKENS = tl.constexpr(CHANGES), tl.constexpr(RETURNS), tl.constexpr(TOKENS)
_INCOMING, _OUTGOING = tl.constexpr(INCOMING), tl.constexpr(OUTGOING)
_SAMPLES, _SAMPLED, _STEADY = tl.constexpr(SAMPLES), tl.constexpr(SAMPLED), tl.constexpr(STEADY)


@triton.jit  # type: ignore[untyped-decorator]
def _take_in(  # type: ignore[no-untyped-def]
    header, changes, tables, future, returned,
    TAKES_TOKENS: tl.constexpr, PROGRAMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK
    num_changes = tl.load(header + _CHANGES)
    for start in range(first, num_changes, PROGRAMS * BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < num_changes
        place = tl.load(changes + at, mask=inside, other=0)
        tl.store(tables + place, tl.load(changes + num_changes + at, mask=inside, other=0), mask=inside)
    if TAKES_TOKENS:
        num_returns = tl.load(header + _RETURNS)
        slots = changes + 2 * num_changes
        for start in range(first, num_returns, PROGRAMS * BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < num_returns
            place = tl.load(slots + num_returns + at, mask=inside, other=0)
            token = tl.load(returned + place, mask=inside, other=0)
            tl.store(future + tl.load(slots + at, mask=inside, other=0), token, mask=inside)


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])  # type: ignore[untyped-decorator]
def _gather(  # type: ignore[no-untyped-def]
    header, slots, seq_lens, token_ids, positions, cache_slots, sample_offsets, sample_slots,
    tables, block_tables, future, ids, incoming, hidden, num_rows, num_tokens, width, size,
    EMBEDS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A row's block table, as far as it is used, and a token's id or hidden state.

    In steady decode also what else follows from the row's slot and length.
    """
    i = tl.program_id(0).to(tl.int64)
    count = tl.load(header + _TOKENS)
    is_steady = tl.load(header + _STEADY) != 0
    if i < num_rows:
        table = tables + tl.load(slots + i).to(tl.int64) * width
        used = tl.minimum(tl.cdiv(tl.load(seq_lens + i), BLOCK_SIZE), width)
        for start in range(0, used, BLOCK):
            at = start + tl.arange(0, BLOCK)
            tl.store(block_tables + i * width + at, tl.load(table + at, mask=at < used, other=0), mask=at < used)
        if is_steady:
            slot, position = tl.load(slots + i), tl.load(seq_lens + i).to(tl.int64) - 1
            block = tl.load(table + position // BLOCK_SIZE).to(tl.int64)
            tl.store(positions + i, position)
            tl.store(cache_slots + i, block * BLOCK_SIZE + position % BLOCK_SIZE)
            tl.store(sample_offsets + i, i.to(tl.int32))
            tl.store(sample_slots + i, slot)
    if EMBEDS:
        if i < num_tokens:
            if is_steady:
                token = -1 - tl.load(slots + i, mask=i < count, other=-1).to(tl.int64)
            else:
                token = tl.load(token_ids + i).to(tl.int64)
            newest = tl.load(future + tl.maximum(-1 - token, 0))
            tl.store(ids + i, tl.where(token < 0, newest, token))
    else:
        if i < tl.minimum(num_tokens, count):
            source = incoming + (tl.load(header + _INCOMING) + i) * size
            for start in range(0, size, WIDE):
                at = start + tl.arange(0, WIDE)
                tl.store(hidden + i * size + at, tl.load(source + at, mask=at < size), mask=at < size)


@triton.jit  # type: ignore[untyped-decorator]
def _hand_on(header, hidden, outgoing, size, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    i = tl.program_id(0).to(tl.int64)
    if i < tl.load(header + _TOKENS):
        target = outgoing + (tl.load(header + _OUTGOING) + i) * size
        for start in range(0, size, WIDE):
            at = start + tl.arange(0, WIDE)
            tl.store(target + at, tl.load(hidden + i * size + at, mask=at < size), mask=at < size)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def _keep(  # type: ignore[no-untyped-def]
    header, slots, token_ids, future, sampled, host_sampled, num_rows,
    FEEDS_BACK: tl.constexpr, KEEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.minimum(num_rows, tl.load(header + _SAMPLES))
    token = tl.load(token_ids + at, mask=inside, other=0)
    if FEEDS_BACK:
        tl.store(future + tl.load(slots + at, mask=inside, other=0), token, mask=inside)
    if KEEPS:
        place = tl.load(header + _SAMPLED) + at
        tl.store(sampled + place, token, mask=inside)
        tl.store(host_sampled + place, token, mask=inside)


class Ends:
    """The kernels over the places of one stage. Enqueued, never wait."""

    def __init__(self, places: Places, block_size: int, embeds: bool, takes_tokens: bool) -> None:
        self._places = places
        self._block_size = block_size
        self._embeds, self._takes_tokens = embeds, takes_tokens

    def take_in(self) -> None:
        """The plan's blocks into the tables, returned tokens into the FutureMap."""
        at = self._places
        _take_in[(_PROGRAMS,)](
            at.columns.header,
            at.columns.changes,
            at.tables,
            at.future,
            at.returned,
            TAKES_TOKENS=self._takes_tokens,
            PROGRAMS=_PROGRAMS,
            BLOCK=_BLOCK,
        )

    def gather(self, num_rows: int, num_tokens: int) -> None:
        """The rows' block tables, and the tokens' ids, or the hidden states that have come in; see `columns.STEADY`."""
        at = self._places
        columns = at.columns
        _gather[(max(num_rows, num_tokens),)](
            columns.header,
            columns.slots,
            columns.seq_lens,
            columns.token_ids,
            columns.positions,
            columns.cache_slots,
            columns.sample_offsets,
            columns.sample_slots,
            at.tables,
            at.block_tables,
            at.future,
            at.ids,
            at.incoming,
            at.hidden,
            num_rows,
            num_tokens,
            at.tables.shape[1],
            at.hidden.shape[1],
            EMBEDS=self._embeds,
            BLOCK_SIZE=self._block_size,
            BLOCK=_BLOCK,
            WIDE=_WIDE,
        )

    def hand_on(self, hidden: Tensor) -> None:
        """The step's hidden states, of [T, H] that may be padded, to where they are sent from."""
        at = self._places
        _hand_on[(len(hidden),)](at.columns.header, hidden, at.outgoing, hidden.shape[1], WIDE=_WIDE)

    def feed_back(self, token_ids: Tensor) -> None:
        """Sampled tokens, of [R] that may be padded, into the FutureMap."""
        self._keep(token_ids, feeds_back=True, keeps=False)

    def keep(self, token_ids: Tensor) -> None:
        """Sampled tokens, of [R] that may be padded, to where they are sent and read from; with one stage fed back."""
        self._keep(token_ids, feeds_back=self._embeds, keeps=True)

    def _keep(self, token_ids: Tensor, feeds_back: bool, keeps: bool) -> None:
        at, num_rows = self._places, len(token_ids)
        _keep[(triton.cdiv(num_rows, _BLOCK),)](
            at.columns.header,
            at.columns.sample_slots,
            token_ids,
            at.future,
            at.sampled,
            at.host_sampled,
            num_rows,
            FEEDS_BACK=feeds_back,
            KEEPS=keeps,
            BLOCK=_BLOCK,
        )
