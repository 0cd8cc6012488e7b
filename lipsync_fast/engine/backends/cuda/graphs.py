# SPDX-License-Identifier: Apache-2.0
"""Batches of the sizes for which there are captured graphs.

A captured graph runs one number of frames, in static memory. So a network has several of them, and
what is to be done is cut into their sizes. Numbers only: what a graph is, the device knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

SIZES = (1, 2, 4, 8, 16, 32, 64)
LAUNCH_COST = 4.0
"""What one more batch costs, in frames of padding: a hundred kernels' starts, a device that small
batches do not fill, and the host's part. An assumption, not yet measured on a GPU."""


@lru_cache(maxsize=4096)
def _cover(count: int, sizes: tuple[int, ...], each: float) -> tuple[int, ...]:
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for n in range(1, count + 1):
        options = []
        for size in sizes:
            cost, rest = best[max(0, n - size)]
            options.append((cost + max(0, size - n) + each, (size, *rest)))
        # Of equal ones, the least padded, then the fewest.
        best.append(min(options, key=lambda o: (o[0], sum(o[1]), len(o[1]))))
    return tuple(sorted(best[count][1], reverse=True))


def cover(count: int, sizes: Sequence[int], each: float = LAUNCH_COST) -> tuple[int, ...]:
    """The graphs that make ``count`` frames, the largest first.

    Their sizes sum up to ``count`` or more; of all such choices, the one that costs least, which is
    the padded frames and ``each`` for every graph. With 0 for that, nothing is padded that need not
    be; a chain of small graphs replaces a large one.

    Args:
        count: of frames, 0 or more.
        sizes: of which there are graphs; in any order.

    Raises:
        ValueError: there are none.
    """
    if not sizes:
        raise ValueError("no graphs to cover a batch with")
    usable = tuple(sorted(set(sizes)))
    largest = usable[-1]
    # Of many frames, most go into the largest; what is left is small enough to try all ways.
    whole = max(0, count // largest - 1)
    return (largest,) * whole + _cover(count - whole * largest, usable, each)


def first_batch(count: int, sizes: Sequence[int]) -> tuple[int, int]:
    """The graph that begins with ``count`` waiting frames, and how many of them it takes."""
    size = cover(count, sizes)[0]
    return size, min(size, count)


def warming_order(sizes: Iterable[int]) -> list[int]:
    """In which order graphs are captured: one frame can be made at once, the largest wait."""
    return sorted(sizes)


def most_frames(free: int, each: int, share: float, sizes: Sequence[int] = SIZES) -> list[int]:
    """Sizes whose batches fit into a share of what is free; the smallest one always.

    Args:
        free: bytes.
        each: bytes that a frame of a batch needs while it is made.
        share: of ``free`` that may be used.
    """
    ordered = sorted(sizes)
    return [size for size in ordered if size == ordered[0] or size * each <= free * share]
