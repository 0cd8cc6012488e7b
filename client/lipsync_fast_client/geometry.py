# SPDX-License-Identifier: Apache-2.0
"""Rectangles in pictures: one type, so that corners and sizes cannot be taken for one another."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Corners(NamedTuple):
    """A rectangle as two corners, in pixels: columns x1 .. x2 - 1, rows y1 .. y2 - 1."""

    x1: int
    y1: int
    x2: int
    y2: int


class Rect(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """A rectangle, in pixels: columns x .. x + width - 1, rows y .. y + height - 1.

    In messages it is the four numbers in a row. It is no sequence: whoever wants corners asks for
    them.
    """

    x: int
    y: int
    width: int
    height: int

    @classmethod
    def from_corners(cls, x1: int, y1: int, x2: int, y2: int) -> Rect:
        """The rectangle between two corners; the second one lies outside of it."""
        return cls(x1, y1, x2 - x1, y2 - y1)

    @classmethod
    def of_size(cls, size: tuple[int, int]) -> Rect:
        """All of a picture of that width and height."""
        return cls(0, 0, size[0], size[1])

    @property
    def right(self) -> int:
        """The first column beyond it."""
        return self.x + self.width

    @property
    def bottom(self) -> int:
        """The first row beyond it."""
        return self.y + self.height

    @property
    def corners(self) -> Corners:
        """Its upper left corner, and the lower right one, which lies outside."""
        return Corners(self.x, self.y, self.x + self.width, self.y + self.height)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns, to cut it out of an array of a picture."""
        return slice(self.y, self.bottom), slice(self.x, self.right)

    def seen_from(self, other: Rect) -> Rect:
        """This one, in pixels of the picture that ``other`` cuts out."""
        return Rect(self.x - other.x, self.y - other.y, self.width, self.height)

    def scaled(self, by: float) -> Rect:
        """This one in a picture that is ``by`` times as large: each number rounded by itself."""
        return Rect(*(round(v * by) for v in (self.x, self.y, self.width, self.height)))

    def __contains__(self, other: Rect) -> bool:
        return (
            self.x <= other.x
            and self.y <= other.y
            and other.right <= self.right
            and other.bottom <= self.bottom
        )

    def grown(self, by: int, side: int) -> Rect:
        """This one with ``by`` more pixels on each side, where a square of ``side`` has them."""
        return Rect.from_corners(
            max(0, self.x - by),
            max(0, self.y - by),
            min(side, self.right + by),
            min(side, self.bottom + by),
        )


EMPTY = Rect(0, 0, 0, 0)
