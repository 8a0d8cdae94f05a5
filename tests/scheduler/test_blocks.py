"""The block pool: held, cached and blank blocks, and who goes first."""

from __future__ import annotations

import pytest

from penstock.scheduler.blocks import BlockPool


class Kept:
    """Contents that the index knows of."""

    def __init__(self, *blocks: int) -> None:
        self.blocks = set(blocks)

    def has(self, block: int) -> bool:
        return block in self.blocks

    def forget(self, block: int) -> None:
        self.blocks.remove(block)


def test_a_freed_block_without_content_goes_out_before_one_with() -> None:
    pool = BlockPool(4, Kept(0, 1))
    blocks = pool.allocate(4)
    pool.free(blocks)
    assert pool.num_cached == 2
    assert set(pool.allocate(2)) == {2, 3}


def test_the_least_recently_used_content_is_evicted_first_and_a_tail_before_its_head() -> None:
    kept = Kept(0, 1, 2, 3)
    pool = BlockPool(4, kept)
    blocks = pool.allocate(4)
    pool.free(blocks[2:])
    pool.free(blocks[:2])
    assert [pool.allocate(1)[0] for _ in range(4)] == [3, 2, 1, 0]
    assert not kept.blocks


def test_a_cached_block_that_is_held_again_is_not_evicted() -> None:
    pool = BlockPool(2, Kept(0, 1))
    pool.free(pool.allocate(2))
    pool.hold([0])
    assert pool.allocate(1) == [1]
    pool.check([[0], [1]])


def test_a_shared_block_is_free_when_its_last_holder_leaves() -> None:
    pool = BlockPool(2, Kept())
    blocks = pool.allocate(1)
    pool.hold(blocks)
    pool.free(blocks)
    assert pool.num_free == 1
    pool.free(blocks)
    assert pool.num_free == 2


def test_check_finds_a_lost_block_and_one_freed_twice() -> None:
    pool = BlockPool(2, Kept())
    blocks = pool.allocate(1)
    with pytest.raises(AssertionError, match="reference counts"):
        pool.check([])
    pool.free(blocks)
    with pytest.raises(AssertionError, match="freed while free"):
        pool.free(blocks)
    with pytest.raises(AssertionError, match="3 blocks asked for, 2 are free"):
        pool.allocate(3)
