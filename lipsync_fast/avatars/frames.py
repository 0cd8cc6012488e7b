# SPDX-License-Identifier: Apache-2.0
"""Mapped frames with their faces: what avatar packages and prepared folders have in common.

    frames.bin, .npy    frames as JPEGs one after the other; N + 1 offsets, uint64
    segments.npy        N x (S + 1) uint32: the restart segments within each frame's JPEG
    rects.npy           N x 4 int32: the face crop x1, y1, x2, y2 in the frame
    masks.bin, .npy     optional: per frame, packed bits (zlib), set where the original stays

Indexes are held against the files when they are opened; a member's checksum only by ``verify``.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.manifest import FileEntry
from lipsync_fast.avatars.storage import (
    PIECE,
    Storage,
    check_rects,
    check_sizes,
    checked_offsets,
    copied,
    read_array,
    shorter,
    unpacked_mask,
)
from lipsync_fast.closing import Closing
from lipsync_fast.errors import AvatarError, AvatarFormatError
from lipsync_fast.geometry import Rect

Pile = tuple[memoryview, NDArray[np.uint64]]
"""Byte strings one behind the other, and their offsets."""
_ROWS = 4096
"""Rows of an index that are looked at together: one that lies from its start on is not read."""


class Head(Protocol):
    """What the file that describes a folder says of its frames."""

    @property
    def frame_count(self) -> int: ...
    @property
    def frame_width(self) -> int: ...
    @property
    def frame_height(self) -> int: ...
    @property
    def files(self) -> dict[str, FileEntry]: ...


M = TypeVar("M", bound=Head)


class MappedFrames(Closing, Generic[M]):
    """Frames, face rectangles and masks in mapped memory; opening them copies nothing.

    A frame's index must be in [0, manifest.frame_count).

    Attributes:
        head: name of the file that describes the others.
        made_by: said where a member is missing: how there comes to be such a folder.
    """

    head: ClassVar[str]
    made_by: ClassVar[str] = ""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.path = storage.path
        self.manifest = m = self._read_head()
        check_sizes(storage, {name: entry.size for name, entry in m.files.items()})
        self._frames = self._pile("frames")
        self._segments = self._array("segments.npy", np.uint32, 2)
        rects = self._array("rects.npy", np.int32, 2)
        if rects.shape[1] != 4 or self._segments.shape[1] < 2:
            raise AvatarFormatError(f"{self.path}: an index has the wrong shape")
        self._rects: NDArray[np.int64] = np.frombuffer(self._copied(rects.data), np.int32).reshape(
            rects.shape
        )  # type: ignore[assignment]
        self._masks = self._pile("masks") if "masks.npy" in m.files else None
        self._check_segments()
        check_rects(self._rects, self.frame_size, str(self.path))

    @abstractmethod
    def _read_head(self) -> M:
        """Parse and check the file that describes the others."""

    @classmethod
    def _opened(cls, path: Path) -> Self:
        storage = None
        try:
            storage = Storage(path)
            return cls(storage)
        except Exception as error:
            if storage is not None:
                storage.close()
            if isinstance(error, AvatarError):
                raise
            # Whatever else somebody's file brings about is its fault, and nobody else's matter.
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise AvatarFormatError(f"{path}: is damaged ({reason})") from error

    def close(self) -> None:
        """Forget the mapping; twice is harmless."""
        self._storage.close()

    # ------------------------------------------------------------ members
    def member(self, name: str) -> memoryview:
        """A member's bytes, mapped, without a copy.

        Raises:
            AvatarFormatError: there is no such member, or it is not listed.
        """
        data = self._storage.member(name)
        if not self._storage.intact():
            raise shorter(self.path)
        if data is None:
            raise AvatarFormatError(f"{self.path}: {name} is missing{self.made_by}")
        # Else verify() would vouch for what it has not read.
        if name != self.head and name not in self.manifest.files:
            raise AvatarFormatError(f"{self.path}: {name} is not listed in the manifest")
        return data

    def member_bytes(self, name: str) -> bytes:
        """``member`` as a copy, which nobody can cut short.

        Raises:
            AvatarFormatError: as ``member``; or the file lost some of it, be it meanwhile.
        """
        return self._copied(self.member(name))

    def verify(self) -> None:
        """Check every member against its checksum (reads all of it).

        Raises:
            AvatarFormatError: names the first member that differs.
        """
        for name, entry in self.manifest.files.items():
            data, digest = self.member(name), hashlib.sha256()
            for at in range(0, len(data), PIECE):
                digest.update(self._copied(data[at : at + PIECE]))
            if digest.hexdigest() != entry.sha256:
                raise AvatarFormatError(f"{self.path}: {name} is damaged (its checksum differs)")

    def _array(self, name: str, dtype: type[np.generic], ndim: int) -> NDArray[np.int64]:
        array = read_array(self.member(name), f"{self.path}/{name}")
        if array.dtype != dtype or array.ndim != ndim or len(array) != self.manifest.frame_count:
            raise AvatarFormatError(
                f"{self.path}: {name} has shape {array.shape} of {array.dtype}, expected"
                f" {self.manifest.frame_count} rows of {np.dtype(dtype)}"
            )
        return array  # type: ignore[return-value]

    def _pile(self, name: str) -> Pile:
        """A pile of byte strings and its checked offsets."""
        data = self.member(f"{name}.bin")
        index, count = self.member(f"{name}.npy"), self.manifest.frame_count
        return data, checked_offsets(index, len(data), count, str(self.path), name)

    def _check_segments(self) -> None:
        """Hold all restart segments against the frames that they are said to be in."""
        ends = self._frames[1]
        for first in range(0, len(self._segments), _ROWS):
            rows = self._copied_rows(first, _ROWS)
            lengths = ends[first + 1 : first + 1 + len(rows)] - ends[first : first + len(rows)]
            wrong = np.any(rows[:, 1:] <= rows[:, :-1], axis=1) | (rows[:, -1] > lengths)
            if np.any(wrong):
                frame = first + int(np.argmax(wrong))
                raise AvatarFormatError(f"{self.path}: the segments of frame {frame} do not fit it")

    def _check(self, index: int) -> None:
        if not 0 <= index < self.manifest.frame_count:
            raise IndexError(f"frame {index} of {self.manifest.frame_count}")
        if not self._storage.intact():
            raise shorter(self.path)

    def _of_pile(self, pile: Pile, index: int) -> memoryview:
        self._check(index)
        return pile[0][int(pile[1][index]) : int(pile[1][index + 1])]

    def _copied(self, view: memoryview) -> bytes:
        return copied(view, self.path)

    def _copied_rows(self, first: int, count: int) -> NDArray[np.uint32]:
        rows = self._segments[first : first + count]
        return np.frombuffer(self._copied(rows.data), np.uint32).reshape(rows.shape)

    # ------------------------------------------------------------ frames
    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height of a frame in pixels."""
        return self.manifest.frame_width, self.manifest.frame_height

    def frame_jpeg(self, index: int) -> memoryview:
        """The pre-encoded frame, with restart markers."""
        return self._of_pile(self._frames, index)

    def frame_bytes(self, index: int) -> bytes:
        """``frame_jpeg`` as a copy, which nobody can cut short.

        Raises:
            AvatarFormatError: the file lost some of it, be it meanwhile.
        """
        return self._copied(self.frame_jpeg(index))

    def frame_segments(self, index: int) -> NDArray[np.uint32]:
        """Offsets of the restart segments in ``frame_jpeg(index)``, S + 1 numbers, checked."""
        self._check(index)
        offsets: NDArray[np.uint32] = self._copied_rows(index, 1)[0]
        if np.any(offsets[1:] <= offsets[:-1]) or offsets[-1] > len(self.frame_jpeg(index)):
            raise AvatarFormatError(f"{self.path}: the segments of frame {index} do not fit it")
        return offsets

    def rect(self, index: int) -> Rect:
        """The face crop, inside the frame."""
        self._check(index)
        return Rect.from_corners(*self._rects[index].tolist())

    def mask(self, index: int) -> NDArray[np.uint8] | None:
        """Rectangle-sized uint8, 1 where the original pixel stays; None if all may change."""
        if self._masks is None:
            return None
        packed = self._copied(self._of_pile(self._masks, index))
        if len(packed) == 0:
            return None
        return unpacked_mask(packed, self.rect(index).size, f"{self.path}: mask {index}")
