"""The KV cache's blocks: who holds them, which are free, which of the free ones still have content worth keeping.

Every block is in one of three states: held (reference count above 0), cached (free, its content in the prefix index)
or blank (free). Blank blocks are given out first, then cached ones, least recently used first. Every operation is
O(1) for each block. Plan order is execution order, so a freed block may be given out in the next plan.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol


class Contents(Protocol):
    """What the pool asks of the prefix index."""

    def has(self, block: int) -> bool:
        """Whether the block's content can be found again."""
        ...

    def forget(self, block: int) -> None:
        """The block is about to be overwritten."""
        ...


class BlockPool:
    """Reference counts and free lists of `num_blocks` blocks."""

    def __init__(self, num_blocks: int, contents: Contents) -> None:
        self.num_blocks = num_blocks
        self._contents = contents
        self._refs = [0] * num_blocks
        self._blank = list(range(num_blocks - 1, -1, -1))  # a stack; block 0 goes out first
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        return len(self._blank) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_free

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """How many of these would leave the free lists if held."""
        return sum(1 for block in blocks if not self._refs[block])

    def allocate(self, count: int) -> list[int]:
        """`count` blocks of nobody's, each held once. The caller has made sure that so many are free."""
        assert count <= self.num_free, f"{count} blocks asked for, {self.num_free} are free"
        first_blank = max(0, len(self._blank) - count)
        blocks = self._blank[first_blank:][::-1]
        del self._blank[first_blank:]
        blocks += [self._evict() for _ in range(count - len(blocks))]
        for block in blocks:
            self._refs[block] = 1
        return blocks

    def hold(self, blocks: Iterable[int]) -> None:
        """One more holder for each of these, found in the prefix index."""
        for block in blocks:
            if not self._refs[block]:
                del self._cached[block]
            self._refs[block] += 1

    def free(self, blocks: Sequence[int]) -> None:
        """One holder less; given in sequence order, a sequence's last block is evicted before its first."""
        for block in reversed(blocks):
            assert self._refs[block] > 0, f"block {block} freed while free"
            self._refs[block] -= 1
            if self._refs[block]:
                continue
            if self._contents.has(block):
                self._cached[block] = None
            else:
                self._blank.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self._contents.forget(block)
        return block

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Asserts the invariants; `tables` are the block tables of all sequences."""
        refs = [0] * self.num_blocks
        for table in tables:
            assert len(set(table)) == len(table), f"a block twice in one table: {table}"
            for block in table:
                refs[block] += 1
        assert refs == self._refs, "reference counts differ from the block tables"
        held = sum(1 for count in refs if count)
        total = len(self._blank) + len(self._cached) + held
        assert total == self.num_blocks, f"free + cached + held = {total}, total {self.num_blocks}"
        free = set(self._blank) | set(self._cached)
        assert len(free) == self.num_free, "a block is free twice"
        assert all(not refs[block] for block in free), "a free block is held"
        assert all(self._contents.has(block) for block in self._cached), "a cached block is not in the index"
        assert not any(self._contents.has(block) for block in self._blank), "a blank block is in the index"
