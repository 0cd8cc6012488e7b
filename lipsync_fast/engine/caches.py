# SPDX-License-Identifier: Apache-2.0
"""A cache that is bounded by bytes."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
Key = tuple[Hashable, ...]
AHEAD_SHARE = 0.5
"""How much of a cache may be filled with what was not asked for yet: the rest is for what is."""


def within_memory(most: int, share: float = 1 / 8) -> int:
    """``most`` bytes, or that share of the memory that this process may use, where it is less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(most, int(memory * share))


class ByteLru(Generic[Value]):
    """Values by key, the least recently used dropped beyond a number of bytes; for any thread.

    A key is a tuple whose first part is its owner; the owner lives until it is forgotten.

    Args:
        limit: bytes that may be held.
        uses: keep a value from this use on. New memory is dear (1 ms per MB on a virtual machine
            that has not touched it yet), so what is costly to keep should be asked for twice.
    """

    def __init__(self, limit: int, uses: int = 1) -> None:
        self.limit, self.used, self._uses = limit, 0, uses
        self._asked: dict[Key, int] = {}
        self._of: dict[Hashable, int] = {}
        self._entries: OrderedDict[Key, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], tuple[Value, int]]) -> Value:
        """The value of ``key``, made (with its size in bytes) where it is not there.

        Two threads that ask for the same missing key both make it; one result is kept.
        """
        found = self.find(key)
        if found is not None:
            return found
        value, size = make()
        with self._lock:
            asked = self._uses
            if self._uses > 1:
                asked = self._asked[key] = self._asked.get(key, 0) + 1
            if asked >= self._uses and key not in self._entries:
                self._entries[key] = value, size
                self._count(key, size)
            while self.used > self.limit and len(self._entries) > 1:
                oldest, (_, dropped) = self._entries.popitem(last=False)
                self._count(oldest, -dropped)
        return value

    def _count(self, key: Key, size: int) -> None:
        self.used += size
        self._of[key[0]] = self._of.get(key[0], 0) + size

    def used_by(self, owner: Hashable) -> int:
        """Bytes that are held for an owner."""
        return self._of.get(owner, 0)

    def find(self, key: Key) -> Value | None:
        """The value of ``key`` where it is there."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def take(self, key: Key) -> Value | None:
        """The value of ``key`` where it is there, which is no longer kept."""
        with self._lock:
            value, size = self._entries.pop(key, (None, 0))
            if size:
                self._count(key, -size)
            return value

    def forget(self, owner: Hashable) -> None:
        """Drop all that belongs to an owner."""
        with self._lock:
            for key in [k for k in self._entries if k[0] == owner]:
                self.used -= self._entries.pop(key)[1]
            self._of.pop(owner, None)
            self._asked = {k: n for k, n in self._asked.items() if k[0] != owner}

    def clear(self) -> None:
        """Forget all entries."""
        with self._lock:
            self._entries.clear()
            self._asked.clear()
            self._of.clear()
            self.used = 0
