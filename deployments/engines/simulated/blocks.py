"""The simulated KV cache: a pool of blocks, counted references, and full blocks that can be found again by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """Blocks are numbers from 0. A free block keeps its content until it is handed out again, oldest first."""

    def __init__(self, blocks: int) -> None:
        if blocks < 1:
            raise ValueError("a pool has at least one block")
        self.total = blocks
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(blocks))
        self._references = [0] * blocks
        self._key_of: dict[int, int] = {}
        self._block_of: dict[int, int] = {}

    @property
    def in_use(self) -> int:
        """Blocks that some sequence holds. Changes nothing."""
        return self.total - len(self._free)

    def find(self, keys: Sequence[int]) -> list[int]:
        """Blocks with the content of the longest known prefix of `keys`. Changes nothing."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def can_take(self, shared: Sequence[int], fresh: int) -> bool:
        """Whether `take` would succeed. Changes nothing."""
        idle = sum(1 for block in shared if self._references[block] == 0)
        return fresh <= len(self._free) - idle

    def take(self, shared: Sequence[int], fresh: int) -> list[int] | None:
        """Hold the blocks in `shared` (from `find`) and `fresh` empty ones; all of them, or None and no change."""
        if not self.can_take(shared, fresh):
            return None
        for block in shared:
            self._free.pop(block, None)
            self._references[block] += 1
        return [*shared, *(self._fresh() for _ in range(fresh))]

    def label(self, block: int, key: int) -> None:
        """Note the content of a held, full block, so that `find` finds it. The first block with a content stays."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one hold on each block. The last blocks of a sequence are reused first: fewest share them."""
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None

    def faults(self) -> list[str]:
        """What is wrong with the pool's books; empty when all is well. Changes nothing."""
        found = [f"block {b} is free and held" for b in self._free if self._references[b] != 0]
        found += [f"block {b} has {n} references" for b, n in enumerate(self._references) if n < 0]
        held = sum(1 for references in self._references if references > 0)
        if held + len(self._free) != self.total:
            found.append(f"{held} held and {len(self._free)} free blocks of {self.total}")
        found += [f"block {b} and its content disagree" for b, k in self._key_of.items() if self._block_of.get(k) != b]
        if len(self._key_of) != len(self._block_of):
            found.append("a content is noted for no block")
        return found

    def _fresh(self) -> int:
        block, _ = self._free.popitem(last=False)
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
        self._references[block] = 1
        return block
