# SPDX-License-Identifier: Apache-2.0
"""Places in device memory by key: which are there, which are used by batches in flight.

Batches are numbered in the order in which they are put on the device, and end in that order. A slot
is known by the number of the last batch that read or wrote it, and given to another key only when
that batch has ended; so no batch finds something else in a slot than what it was planned with.

Numbers only, and one thread: the memory itself is the owner's.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Slots:
    """Slots ``first`` .. ``first + count - 1``, the least recently used given away first.

    Args:
        count: of slots.
        first: number of the first one.
    """

    def __init__(self, count: int, first: int = 0) -> None:
        self.count = count
        self._first = first
        self._next = first
        """From here on none was ever used: they need no list."""
        self._free: list[int] = []
        self._kept: OrderedDict[Hashable, list[int]] = OrderedDict()
        """Slot and the last batch that uses it, in the order of that."""
        self._let_go: list[tuple[int, int]] = []
        """Last batch and slot of forgotten keys."""

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def find(self, key: Hashable, batch: int) -> int | None:
        """The slot that holds ``key``, which ``batch`` is going to use; None where none does."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        if entry[1] != batch:
            entry[1] = batch
            self._kept.move_to_end(key)
        return entry[0]

    def take(self, key: Hashable, batch: int, ended: int) -> int | None:
        """A slot for a key that has none, for ``batch`` to fill.

        Args:
            ended: all batches up to this one have ended.

        Returns:
            None where every slot is used by a batch that has not: wait for one.
        """
        slot = self._unused(ended)
        if slot is not None:
            self._kept[key] = [slot, batch]
        return slot

    def room(self, ended: int) -> int:
        """How many slots can be taken now."""
        fresh = self._first + self.count - self._next
        gone = sum(batch <= ended for batch, _ in self._let_go)
        old = 0
        for _, batch in self._kept.values():
            if batch > ended:
                break
            old += 1
        return fresh + len(self._free) + gone + old

    def _unused(self, ended: int) -> int | None:
        if self._let_go:
            self._free += [slot for batch, slot in self._let_go if batch <= ended]
            self._let_go = [entry for entry in self._let_go if entry[0] > ended]
        if self._free:
            return self._free.pop()
        if self._next < self._first + self.count:
            self._next += 1
            return self._next - 1
        if self._kept and next(iter(self._kept.values()))[1] <= ended:
            return self._kept.popitem(last=False)[1][0]
        return None

    def drop(self, key: Hashable) -> None:
        """Forget one key: its slot is free again when the last batch that uses it has ended."""
        slot, batch = self._kept.pop(key)
        self._let_go.append((batch, slot))

    def forget(self, gone: Callable[[Hashable], bool]) -> None:
        """Forget keys."""
        for key in [key for key in self._kept if gone(key)]:
            self.drop(key)

    def grow(self, count: int) -> None:
        """Have more slots; those that are there stay what they are."""
        self.count = max(self.count, count)
