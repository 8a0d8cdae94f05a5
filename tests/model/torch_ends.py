"""What the kernels at a step's two ends do, in plain torch: their reference, and their stand-in on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.model.gpu.columns import CHANGES, INCOMING, OUTGOING, RETURNS, SAMPLED, SAMPLES, STEADY, TOKENS, Places


class TorchEnds:
    """See `penstock.model.gpu.ends.Ends`."""

    def __init__(self, places: Places, block_size: int, embeds: bool, takes_tokens: bool) -> None:
        self._places = places
        self._block_size = block_size
        self._embeds, self._takes_tokens = embeds, takes_tokens

    def take_in(self) -> None:
        at = self._places
        changes, returns = at.columns.header[[CHANGES, RETURNS]].tolist()
        lists = at.columns.changes.long()
        at.tables.view(-1)[lists[:changes]] = lists[changes : 2 * changes].int()
        if self._takes_tokens:
            slots, tokens = lists[2 * changes : 2 * changes + 2 * returns].view(2, returns)
            at.future[slots] = at.returned[tokens]

    def gather(self, num_rows: int, num_tokens: int) -> None:
        at = self._places
        for row in range(num_rows):
            used = min(-(-int(at.columns.seq_lens[row]) // self._block_size), at.tables.shape[1])
            at.block_tables[row, :used] = at.tables[at.columns.slots[row], :used]
        if at.columns.header[STEADY]:
            self._derive(num_rows)
        if self._embeds:
            token_ids = at.columns.token_ids[:num_tokens].long()
            at.ids[:num_tokens] = token_ids
            newest = token_ids < 0
            at.ids[:num_tokens][newest] = at.future[~token_ids[newest]]
        else:
            start, count = int(at.columns.header[INCOMING]), min(num_tokens, int(at.columns.header[TOKENS]))
            at.hidden[:count] = at.incoming[start : start + count]

    def _derive(self, num_rows: int) -> None:
        at, columns, count = self._places, self._places.columns, int(self._places.columns.header[TOKENS])
        slots = columns.slots[:num_rows].long()
        positions = columns.seq_lens[:num_rows].long() - 1
        blocks = at.tables[slots, positions // self._block_size].long()
        columns.positions[:num_rows] = positions
        columns.cache_slots[:num_rows] = blocks * self._block_size + positions % self._block_size
        columns.sample_offsets[:num_rows] = torch.arange(num_rows)
        columns.sample_slots[:num_rows] = slots.int()
        if self._embeds:
            columns.token_ids[:count] = ~slots[:count].int()
            columns.token_ids[count:num_rows] = 0

    def hand_on(self, hidden: Tensor) -> None:
        at = self._places
        start, count = at.columns.header[[OUTGOING, TOKENS]].tolist()
        at.outgoing[start : start + count] = hidden[:count]

    def feed_back(self, token_ids: Tensor) -> None:
        at = self._places
        count = min(len(token_ids), int(at.columns.header[SAMPLES]))
        at.future[at.columns.sample_slots[:count].long()] = token_ids[:count]

    def keep(self, token_ids: Tensor) -> None:
        at = self._places
        if self._embeds:
            self.feed_back(token_ids)
        start, count = at.columns.header[[SAMPLED, SAMPLES]].tolist()
        count = min(len(token_ids), count)
        for memory in (at.sampled, at.host_sampled):
            memory[start : start + count] = token_ids[:count]
