"""The kernels at a step's two ends against plain torch."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from penstock.model.gpu.columns import (
    CHANGES,
    INCOMING,
    OUTGOING,
    RETURNS,
    SAMPLED,
    SAMPLES,
    STEADY,
    TOKENS,
    Columns,
    Places,
)

from ..model.torch_ends import TorchEnds

SLOTS, WIDTH, HIDDEN, MOST, BLOCK_SIZE = 300, 70, 1100, 700, 16


def drawn(rows: int, tokens: int, changes: int, returns: int, generator: torch.Generator) -> Places:
    """A step of random content; its padding is what lies behind the rows and tokens that the header names."""

    def numbers(most: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.randint(0, most, shape, dtype=dtype, device="cuda", generator=generator)

    def different(most: int, count: int) -> Tensor:
        return torch.randperm(most, device="cuda", generator=generator)[:count].int()

    header = torch.zeros(8, dtype=torch.int32, device="cuda")
    header[[CHANGES, RETURNS, TOKENS, SAMPLES, INCOMING, OUTGOING, SAMPLED]] = torch.tensor(
        [changes, returns, tokens - tokens // 4, rows - rows // 3, 40, 8, 300], dtype=torch.int32, device="cuda"
    )
    lists = [
        different(SLOTS * WIDTH, changes),
        numbers(9000, changes),
        different(SLOTS, returns),
        numbers(MOST, returns),
    ]
    ids = numbers(30000, tokens)
    ids[::3] = ~numbers(SLOTS, len(ids[::3]))
    columns = Columns(
        header=header,
        slots=different(SLOTS, rows),
        seq_lens=numbers(WIDTH * BLOCK_SIZE + 200, rows),  # a padding prompt may be longer than a sequence
        query_starts=numbers(9, rows + 1),
        sample_offsets=numbers(tokens, rows),
        sample_slots=different(SLOTS, rows),
        token_ids=ids,
        positions=numbers(9, tokens, dtype=torch.int64),
        cache_slots=numbers(9, tokens, dtype=torch.int64),
        changes=torch.cat(lists),
    )
    floats = [torch.randn(MOST, HIDDEN, device="cuda", generator=generator).bfloat16() for _ in range(3)]
    return Places(
        columns,
        tables=numbers(9000, SLOTS, WIDTH),
        block_tables=numbers(9000, SLOTS, WIDTH),
        future=numbers(30000, SLOTS, dtype=torch.int64),
        returned=numbers(30000, MOST, dtype=torch.int64),
        ids=numbers(30000, MOST, dtype=torch.int64),
        incoming=floats[0],
        outgoing=floats[1],
        hidden=floats[2],
        sampled=torch.zeros(MOST, dtype=torch.int64, device="cuda"),
        host_sampled=torch.zeros(MOST, dtype=torch.int64, pin_memory=True),
    )


@pytest.mark.parametrize("embeds", [True, False])
@pytest.mark.parametrize("rows", [1, 64, 130])
def test_steady_decodes_need_slots_and_lengths_alone(rows: int, embeds: bool) -> None:
    from penstock.model.gpu.ends import Ends

    generator = torch.Generator("cuda").manual_seed(rows)
    ours = drawn(rows, rows, 7, 5, generator)
    ours.columns.header[STEADY] = 1
    ours.columns.seq_lens.clamp_(1, WIDTH * BLOCK_SIZE)
    columns = [field.name for field in fields(Columns)]
    copies = {name: getattr(ours, name).clone() for name in ("block_tables", "ids", "hidden")}
    copied = Columns(**{name: getattr(ours.columns, name).clone() for name in columns})
    expected = replace(ours, columns=copied, **copies)
    for ends in (Ends(ours, BLOCK_SIZE, embeds, embeds), TorchEnds(expected, BLOCK_SIZE, embeds, embeds)):
        ends.gather(rows, rows)
    torch.cuda.synchronize()
    for name in copies:
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    for name in ("positions", "cache_slots", "sample_offsets", "sample_slots"):
        assert torch.equal(getattr(ours.columns, name), getattr(copied, name)), name


@pytest.mark.parametrize("embeds", [True, False])
@pytest.mark.parametrize(
    ("rows", "tokens", "changes", "returns"), [(1, 1, 0, 0), (64, 64, 5, 64), (17, 500, 3000, 300), (130, 130, 1, 129)]
)
def test_the_ends_do_what_torch_does(rows: int, tokens: int, changes: int, returns: int, embeds: bool) -> None:
    from penstock.model.gpu.ends import Ends

    generator = torch.Generator("cuda").manual_seed(rows)
    ours = drawn(rows, tokens, changes, returns, generator)
    names = [field.name for field in fields(Places) if field.name != "columns"]
    copies = {name: getattr(ours, name).clone() for name in names}
    expected = replace(ours, **copies)
    hidden = torch.randn(tokens, HIDDEN, device="cuda", generator=generator).bfloat16()
    sampled = torch.randint(0, 30000, (rows,), device="cuda", generator=generator)
    for ends in (Ends(ours, BLOCK_SIZE, embeds, embeds), TorchEnds(expected, BLOCK_SIZE, embeds, embeds)):
        ends.take_in()
        ends.gather(rows, tokens)
        ends.hand_on(hidden)
        ends.feed_back(sampled)
        ends.keep(sampled.flip(0))
    torch.cuda.synchronize()
    for name in copies:
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
