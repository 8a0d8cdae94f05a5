"""The prefix index: full blocks found again by a hash over their tokens and everything before them.

A block's hash is blake2b (128 bits) over its predecessor's hash and its own token ids, so that equal hashes mean
equal prefixes, whichever client asks. Blocks are indexed once their tokens are known and their writing is planned;
plan order is execution order, so a later row of the same plan may read them already. Hashing is bounded for each
step: what the allowance does not cover is hashed in later steps.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b
from typing import Protocol

from .request import Request

HASHED_BLOCKS_PER_STEP = 128  # for finding prefixes, and as many again for indexing new blocks; 1 us each
_TOKEN_BYTES = array("i").itemsize


class PrefixCache(Protocol):
    """What the scheduler asks of an index; `NoPrefixCache` answers when caching is off."""

    def begin_step(self) -> None:
        """Renews the step's allowance of hashing."""
        ...

    def match(self, request: Request) -> list[int] | None:
        """Blocks that hold the request's leading tokens, never all of them; None when hashing goes on next step."""
        ...

    def add(self, request: Request, num_written: int) -> None:
        """Indexes the request's full blocks among its first `num_written` tokens, as far as the allowance reaches."""
        ...

    def has(self, block: int) -> bool:
        """Whether the block's content can be found again."""
        ...

    def forget(self, block: int) -> None:
        """The block is about to be overwritten."""
        ...


class PrefixIndex:
    """Block hash to block, and back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self._block_size = block_size
        self._block_of: dict[bytes, int] = {}
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._match_allowance = self._add_allowance = HASHED_BLOCKS_PER_STEP

    def begin_step(self) -> None:
        self._match_allowance = self._add_allowance = HASHED_BLOCKS_PER_STEP

    def match(self, request: Request) -> list[int] | None:
        num_wanted = (len(request.tokens) - 1) // self._block_size
        hashes, blocks = request.block_hashes, []
        for index in range(num_wanted):
            if index == len(hashes):  # the first alone, as most often it settles the matter
                num_hashed = self._hash(request, 1 if index == 0 else num_wanted, self._match_allowance)
                self._match_allowance -= num_hashed
                if not num_hashed:
                    return None
            block = self._block_of.get(hashes[index])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def add(self, request: Request, num_written: int) -> None:
        num_full = num_written // self._block_size
        if len(request.block_hashes) < num_full:
            self._add_allowance -= self._hash(request, num_full, self._add_allowance)
        start, end = request.num_indexed, min(num_full, len(request.block_hashes))
        block_of, hash_of = self._block_of, self._hash_of
        for digest, block in zip(request.block_hashes[start:end], request.blocks[start:end], strict=True):
            if digest not in block_of:
                block_of[digest] = block
                hash_of[block] = digest
        request.num_indexed = max(start, end)

    def has(self, block: int) -> bool:
        return self._hash_of[block] is not None

    def forget(self, block: int) -> None:
        digest = self._hash_of[block]
        assert digest is not None, f"block {block} is not indexed"
        del self._block_of[digest]
        self._hash_of[block] = None

    def _hash(self, request: Request, num_blocks: int, allowance: int) -> int:
        """Hashes the request's blocks up to `num_blocks`, as far as the allowance reaches; how many those were."""
        hashes, size = request.block_hashes, self._block_size
        first = len(hashes)
        last = min(num_blocks, first + allowance)
        data = request.tokens[first * size : last * size].tobytes()
        num_bytes = size * _TOKEN_BYTES
        digest = hashes[-1] if hashes else b""
        for start in range(0, len(data), num_bytes):
            digest = blake2b(digest + data[start : start + num_bytes], digest_size=16).digest()
            hashes.append(digest)
        return last - first


class NoPrefixCache:
    """Finds nothing, keeps nothing."""

    def begin_step(self) -> None:
        pass

    def match(self, request: Request) -> list[int] | None:
        return []

    def add(self, request: Request, num_written: int) -> None:
        pass

    def has(self, block: int) -> bool:
        return False

    def forget(self, block: int) -> None:
        raise AssertionError(f"block {block} was never kept")
