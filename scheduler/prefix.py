"""The prefix index: full blocks found again by a hash over their tokens and everything before them.

A block's hash is blake2b (128 bits) over its predecessor's hash and its own token ids, so that equal hashes mean
equal prefixes, whichever client asks. Blocks are indexed once their tokens are known and their writing is planned;
plan order is execution order, so a later row of the same plan may read them already. Hashing is bounded for each
step: what the allowance does not cover is hashed in later steps.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

from .request import Request

HASHED_BLOCKS_PER_STEP = 256


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
        self._allowance = HASHED_BLOCKS_PER_STEP

    def begin_step(self) -> None:
        self._allowance = HASHED_BLOCKS_PER_STEP

    def match(self, request: Request) -> list[int] | None:
        blocks: list[int] = []
        for index in range((len(request.tokens) - 1) // self._block_size):
            if index == len(request.block_hashes) and not self._hash_next(request):
                return None
            block = self._block_of.get(request.block_hashes[index])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def add(self, request: Request, num_written: int) -> None:
        for index in range(request.num_indexed, num_written // self._block_size):
            if index == len(request.block_hashes) and not self._hash_next(request):
                return
            request.num_indexed = index + 1
            digest = request.block_hashes[index]
            if digest not in self._block_of:
                block = request.blocks[index]
                self._block_of[digest] = block
                self._hash_of[block] = digest

    def has(self, block: int) -> bool:
        return self._hash_of[block] is not None

    def forget(self, block: int) -> None:
        digest = self._hash_of[block]
        assert digest is not None, f"block {block} is not indexed"
        del self._block_of[digest]
        self._hash_of[block] = None

    def _hash_next(self, request: Request) -> bool:
        if not self._allowance:
            return False
        self._allowance -= 1
        hashes, size = request.block_hashes, self._block_size
        start = len(hashes) * size
        parent = hashes[-1] if hashes else b""
        hashes.append(block_hash(parent, request.tokens[start : start + size].tobytes()))
        return True


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


def block_hash(parent: bytes, token_bytes: bytes) -> bytes:
    """16 bytes that stand for a block's tokens and all tokens before them."""
    return blake2b(parent + token_bytes, digest_size=16).digest()
