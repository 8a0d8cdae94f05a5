"""Collectives give every rank the same, as threads and over gloo."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import BrokenBarrierError

import pytest
import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore, PrefixStore, ProcessGroupGloo

from penstock.model.kernels import TORCH_KERNELS
from penstock.model.layers import Place, VocabHead
from penstock.model.tensor_parallel import (
    NoTensorParallel,
    ProcessGroupTensorParallel,
    TensorParallel,
    ThreadTensorParallel,
    likeliest_of_ranks,
    padded_vocab_per_rank,
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
        largest = on_every_rank(
            ranks, lambda tp: tp.all_reduce_max(torch.tensor([tp.rank, -tp.rank, 1], dtype=dtype) - 4)
        )
        assert all(each.tolist() == [SIZE - 1 - 4, -4, -3] for each in largest)
        rows = on_every_rank(ranks, lambda tp: tp.all_gather_last(torch.full((2, 2), tp.rank + 1.0, dtype=dtype)))
        assert all(row.tolist() == [[1, 1, 2, 2, 3, 3]] * 2 for row in rows)


def test_the_likeliest_of_all_ranks_is_the_first_of_the_largest() -> None:
    values = torch.tensor(
        [[1.5, -3.0, -math.inf, 0.0, -2.0], [1.5, -2.5, -math.inf, -0.0, 7.0], [1.0, -8.0, 2.0, -1.0, 7.0]]
    )
    ids = torch.tensor([[4, 9, 3, 5, 0], [10, 11, 12, 13, 14], [150_000, 150_001, 150_002, 150_003, 150_004]])
    likeliest = on_every_rank(
        list(ThreadTensorParallel.group(SIZE)), lambda tp: likeliest_of_ranks(tp, values[tp.rank], ids[tp.rank])
    )
    assert all(each.tolist() == [4, 11, 150_002, 5, 14] for each in likeliest)


@pytest.mark.parametrize(("vocab_size", "size"), [(90, 2), (91, 3), (9, 4), (7, 2)])
def test_the_likeliest_token_is_that_of_all_logits(vocab_size: int, size: int) -> None:
    weight = torch.randn(size * padded_vocab_per_rank(vocab_size, size), 8)
    weight[vocab_size:] = 100.0  # padding must not win
    hidden = torch.rand(20, 8) - 0.2

    def on(tp: TensorParallel) -> tuple[Tensor, Tensor]:
        rows = padded_vocab_per_rank(vocab_size, tp.size)
        share = nn.Parameter(weight[tp.rank * rows :][:rows].clone(), requires_grad=False)
        head = VocabHead(share, vocab_size, Place(torch.float32, "cpu", TORCH_KERNELS), tp)
        head.finish()
        return head(hidden), head.likeliest(hidden, lambda logits: logits.argmax(-1))

    with ThreadPoolExecutor(size) as pool:
        for logits, likeliest in pool.map(on, ThreadTensorParallel.group(size)):
            assert logits.shape == (20, vocab_size)
            assert torch.equal(logits.argmax(-1), likeliest)


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
