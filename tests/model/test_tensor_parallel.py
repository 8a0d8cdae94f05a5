"""Collectives give every rank the same, as threads and over gloo."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import BrokenBarrierError

import pytest
import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore, PrefixStore, ProcessGroupGloo

from penstock.model.tensor_parallel import (
    NoTensorParallel,
    ProcessGroupTensorParallel,
    TensorParallel,
    ThreadTensorParallel,
)

SIZE = 3


def threads() -> list[TensorParallel]:
    return list(ThreadTensorParallel.group(SIZE))


def gloo() -> list[TensorParallel]:
    store = HashStore()

    def join(rank: int) -> TensorParallel:
        group = ProcessGroupGloo(PrefixStore("0/stage", store), rank, SIZE, timedelta(seconds=20))
        return ProcessGroupTensorParallel(group)

    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(join, range(SIZE)))


def on_every_rank(ranks: list[TensorParallel], work: Callable[[TensorParallel], Tensor]) -> list[Tensor]:
    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(work, ranks))


@pytest.mark.parametrize("group", [threads, gloo])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_rank_gets_the_sum_and_the_shares_side_by_side(
    group: Callable[[], list[TensorParallel]], dtype: torch.dtype
) -> None:
    ranks = group()
    for _ in range(3):
        sums = on_every_rank(ranks, lambda tp: tp.all_reduce(torch.full((4, 5), 2.0**tp.rank, dtype=dtype)))
        assert all(torch.equal(total, torch.full((4, 5), 7.0, dtype=dtype)) for total in sums)
        rows = on_every_rank(ranks, lambda tp: tp.all_gather_last(torch.full((2, 2), tp.rank + 1.0, dtype=dtype)))
        assert all(row.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 for row in rows)


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.ones(2)
    assert NoTensorParallel().all_reduce(tensor) is tensor
    assert NoTensorParallel().all_gather_last(tensor) is tensor


def test_a_rank_that_aborts_frees_the_others() -> None:
    ranks = ThreadTensorParallel.group(2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ranks[0].all_reduce, torch.ones(1))
        ranks[1].abort()
        with pytest.raises(BrokenBarrierError):
            waiting.result(timeout=20)
