"""A step's inputs and outputs on the device, at places that are the same for every step, as graphs need them.

Padding rows of decodes read and write a block that no sequence has, by a slot that none has; the padding tokens of a
mixed step are one more prompt in that block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.ma  # np.unique imports it, which takes 14 ms of the first step that sorts
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...scheduler.mirror import Mirror, StepInput
from ...scheduler.plan import StepPlan, ints
from ..batch import Batch
from ..decoder import StageModule
from ..exchange import Exchange
from ..limits import StepLimits
from ..work import StepWork
from .buckets import PaddedShape, most_padded_tokens
from .columns import CHANGES, INCOMING, OUTGOING, RETURNS, SAMPLED, SAMPLES, STEADY, TOKENS, Columns, Places, Staging


class StepBuffers:
    """Written and read on the compute stream alone."""

    def __init__(
        self, module: StageModule, limits: StepLimits, scratch_block: int, exchange: Exchange, device: torch.device
    ) -> None:
        tokens, rows = most_padded_tokens(limits), limits.max_num_seqs + 1
        most_tokens = max(tokens, limits.max_num_batched_tokens)
        self.limits = limits
        self._embeds, self._samples = module.embed_tokens is not None, module.lm_head is not None
        self._scratch_slot = limits.max_num_seqs
        self._scratch_place = scratch_block * limits.block_size
        num_returns = len(exchange.returned.buffers) if exchange.returned else 0
        self._staging = Staging(limits, rows, tokens, num_returns, device)
        self.hidden = torch.zeros(tokens, limits.hidden_size, dtype=limits.dtype, device=device)
        self.sampled = torch.zeros(rows, limits.hidden_size, dtype=limits.dtype, device=device)
        self.ids = torch.zeros(most_tokens, dtype=torch.int64, device=device)
        self._decode_starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
        width = limits.max_blocks_per_seq
        self._tables = torch.full((rows, width), scratch_block, dtype=torch.int32, device=device)
        self.block_tables = torch.full((rows, width), scratch_block, dtype=torch.int32, device=device)
        self._no_ints = torch.zeros(0, dtype=torch.int64, device=device)
        self._exchange = exchange
        self._nothing = Mirror(1, 1, 1).apply(StepPlan(0, ints(), ints()))

    def places(self, padded: bool) -> Places:
        """Where a padded step's, or a larger one's, kernels find things."""
        exchange, nowhere = self._exchange, self.hidden[:0]
        return Places(
            columns=self._staging.padded if padded else self._staging.whole,
            tables=self._tables,
            block_tables=self.block_tables,
            future=exchange.future_map.tokens if exchange.future_map else self._no_ints,
            returned=exchange.returned.buffers.view(-1) if exchange.returned else self._no_ints,
            ids=self.ids,
            incoming=exchange.incoming.buffers.flatten(0, 1) if exchange.incoming else nowhere,
            outgoing=exchange.outgoing.buffers.flatten(0, 1) if exchange.outgoing else nowhere,
            hidden=self.hidden,
            sampled=exchange.sampled.buffers.view(-1) if exchange.sampled else self._no_ints,
            host_sampled=self._no_ints if exchange.host_sampled is None else exchange.host_sampled.view(-1),
        )

    def put(self, work: StepWork, shape: PaddedShape | None) -> None:
        """Enqueues the copy of the step's host arrays, padded to the shape."""
        inputs, columns = work.inputs, self._staging.begin(shape is not None)
        rows = inputs.num_rows if shape is None else shape.num_rows
        is_derived = shape is not None and shape.all_decode and inputs.is_steady
        self._put_rows(columns, inputs, shape, rows)
        if not is_derived:
            self._put_tokens(columns, inputs, inputs.total_tokens if shape is None else shape.num_tokens)
            self._put_samples(columns, inputs, rows)
        end = self._put_changes(columns, work)
        self._put_header(columns.header, work, is_derived)
        self._staging.send(shape is not None, end)

    def _put_header(self, header: NDArray[Any], work: StepWork, is_derived: bool) -> None:
        """All of it but what `_put_changes` puts."""
        most_tokens = self.limits.max_num_batched_tokens
        header[TOKENS], header[SAMPLES] = work.inputs.total_tokens, len(work.inputs.sample_rows)
        header[INCOMING] = work.incoming.turn * most_tokens if work.incoming else 0
        header[OUTGOING] = work.outgoing.turn * most_tokens if work.outgoing else 0
        header[SAMPLED] = work.tokens.turn * self.limits.max_num_seqs if work.tokens else 0
        header[STEADY] = is_derived

    def _put_rows(
        self, columns: Columns[NDArray[Any]], inputs: StepInput, shape: PaddedShape | None, padded_rows: int
    ) -> None:
        rows, tokens = inputs.num_rows, inputs.total_tokens
        columns.slots[:rows] = inputs.slots
        columns.seq_lens[:rows] = inputs.seq_lens
        if shape is None or not shape.all_decode:
            columns.query_starts[: rows + 1] = inputs.query_starts
        if shape is None or rows == padded_rows:
            return
        columns.slots[rows:padded_rows] = self._scratch_slot
        columns.seq_lens[rows:padded_rows] = int(shape.all_decode)
        if not shape.all_decode:
            columns.query_starts[rows + 1 : padded_rows + 1] = shape.num_tokens
            columns.seq_lens[rows] = shape.num_tokens - tokens  # one more prompt

    def _put_tokens(self, columns: Columns[NDArray[Any]], inputs: StepInput, padded_tokens: int) -> None:
        tokens = inputs.total_tokens
        columns.positions[:tokens] = inputs.positions
        columns.positions[tokens:padded_tokens] = 0
        columns.cache_slots[:tokens] = inputs.cache_slots
        columns.cache_slots[tokens:padded_tokens] = self._scratch_place
        if self._embeds:
            columns.token_ids[:tokens] = inputs.token_ids
            columns.token_ids[tokens:padded_tokens] = 0

    def _put_samples(self, columns: Columns[NDArray[Any]], inputs: StepInput, padded_rows: int) -> None:
        if not self._samples:
            return
        num_samples = len(inputs.sample_rows)
        columns.sample_offsets[:num_samples] = inputs.sample_offsets
        columns.sample_offsets[num_samples:padded_rows] = 0
        columns.sample_slots[:num_samples] = inputs.sample_slots

    def _put_changes(self, columns: Columns[NDArray[Any]], work: StepWork) -> int:
        """Puts granted blocks and returned tokens; how many integers they are."""
        places, changes = work.inputs.block_places, columns.changes
        count, at = len(places), 2 * len(places)
        if count:
            changes[:count] = places
            changes[count:at] = work.inputs.plan.block_ids
        slots, tokens = self._returned(work)
        changes[at : at + len(slots)] = slots
        changes[at + len(slots) : at + 2 * len(slots)] = tokens
        columns.header[CHANGES], columns.header[RETURNS] = count, len(slots)
        return at + 2 * len(slots)

    def _returned(self, work: StepWork) -> tuple[NDArray[Any], NDArray[Any]]:
        """Slots whose tokens have come, and where those lie: of several for one slot the newest."""
        found = work.returned
        if not found:
            return self._nothing.slots, self._nothing.slots
        length = self.limits.max_num_seqs
        slots = np.concatenate([slots for slots, _ in found])
        tokens = np.concatenate([np.arange(len(slots)) + place.turn * length for slots, place in found])
        if len(found) == 1:
            return slots, tokens
        _, newest = np.unique(slots[::-1], return_index=True)
        return slots[::-1][newest], tokens[::-1][newest]

    def clear(self, shape: PaddedShape) -> None:
        """Inputs as if all of the step were padding."""
        self.put(StepWork(self._nothing), shape)

    def batch(self, shape: PaddedShape) -> Batch:
        """A padded step as its kernels see it.

        The block table has its full width and the lengths count as the greatest, since the attention kernel cuts its
        work by them: the same cut, and so the same bits, whichever sequences share a step.
        """
        tokens, rows, columns = shape.num_tokens, shape.num_rows, self._staging.padded
        starts = self._decode_starts if shape.all_decode else columns.query_starts
        return Batch(
            num_tokens=tokens,
            num_rows=rows,
            max_query_len=1 if shape.all_decode else tokens,
            max_seq_len=self.limits.max_model_len,
            all_decode=shape.all_decode,
            token_ids=self.ids[:tokens],
            positions=columns.positions[:tokens],
            cache_slots=columns.cache_slots[:tokens],
            query_starts=starts[: rows + 1],
            seq_lens=columns.seq_lens[:rows],
            block_table=self.block_tables[:rows],
            host_query_starts=np.arange(rows + 1, dtype=np.int32),
            host_seq_lens=np.ones(rows, np.int32),
        )

    def whole(self, inputs: StepInput) -> Batch:
        """A larger step in its own shape."""
        tokens, rows, columns = inputs.total_tokens, inputs.num_rows, self._staging.whole
        return Batch(
            num_tokens=tokens,
            num_rows=rows,
            max_query_len=int(inputs.num_tokens.max(initial=0)),
            max_seq_len=int(inputs.seq_lens.max(initial=0)),
            all_decode=inputs.all_decode,
            token_ids=self.ids[:tokens],
            positions=columns.positions[:tokens],
            cache_slots=columns.cache_slots[:tokens],
            query_starts=columns.query_starts[: rows + 1],
            seq_lens=columns.seq_lens[:rows],
            block_table=self.block_tables[:rows],
            host_query_starts=inputs.query_starts,
            host_seq_lens=inputs.seq_lens,
        )

    def sample_offsets(self, count: int) -> Tensor:
        """[R] of the step's tokens, at the same place in every step."""
        return self._staging.padded.sample_offsets[:count]
