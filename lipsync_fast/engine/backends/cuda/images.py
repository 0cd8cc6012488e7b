# SPDX-License-Identifier: Apache-2.0
"""What an avatar's frames need besides the audio, in device memory.

image halves   the levels x1 .. of a frame: a slot in one large tensor a level, so that a
               batch is one gather a level; bounded over all avatars, grown as frames are asked
               for, the least recently used given up
faces          pixels, crop and mask for composing; bounded by bytes, loaded beside the work
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda.device import Device, Fault
from lipsync_fast.engine.backends.cuda.graph_net import Shape
from lipsync_fast.engine.backends.cuda.loader import DeviceFace, load_frames
from lipsync_fast.engine.backends.cuda.nets import row_memory, rows_of
from lipsync_fast.engine.backends.cuda.slots import Slots
from lipsync_fast.engine.caches import ByteLru, Key
from lipsync_fast.geometry import Rect
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.engine")
FIRST_COUNT = 16
"""Slots that an avatar has at the least."""


@dataclass
class Share:
    """What all avatars' image halves may take, and take."""

    limit: int
    used: int = 0


@dataclass(slots=True)
class Halves:
    """Which image halves a batch uses.

    Attributes:
        index: for each frame, its slot.
        made: frames whose halves are to be computed, and ``slots`` for them.
    """

    index: list[int] = field(default_factory=list)
    made: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


class Images:
    """The image halves of one avatar; one thread.

    Args:
        device: whose memory it is.
        shapes: of the levels.
        dtype: of the networks.
        frames: that the avatar has.
        share: of all avatars.
    """

    def __init__(
        self,
        device: Device,
        shapes: Mapping[str, Shape],
        dtype: torch.dtype,
        frames: int,
        share: Share,
    ) -> None:
        self._device, self._shapes, self._dtype = device, dict(shapes), dtype
        self._frames, self._share = frames, share
        self.each = sum(rows_of(shape, dtype) for shape in shapes.values())
        """Bytes of one frame's."""
        self._first = min(frames, FIRST_COUNT)
        self._count = 0
        self.levels: dict[str, Tensor] = {}
        """By name: slots x words (``nets.row_memory``)."""
        self._slots = Slots(self._first)
        self._resize(self._first)

    @property
    def used(self) -> int:
        """Bytes of the halves that are kept."""
        return len(self._slots) * self.each

    @property
    def allocated(self) -> int:
        """Bytes that they may take without asking for more."""
        return self._count * self.each

    def there(self, frame: int) -> bool:
        """Whether a frame's half is there, or about to be."""
        return frame in self._slots

    def may_prepare(self, ahead: float) -> bool:
        """Whether one more may be made that was not asked for, within that part of the share."""
        if len(self._slots) < self._count:
            return True
        grown = min(self._frames, 2 * self._count) - self._count
        return grown > 0 and self._share.used + grown * self.each <= ahead * self._share.limit

    def plan(self, frames: Sequence[int], batch: int, ended: int) -> Halves:
        """The slots of frames, up to the first one for which there is no room now.

        See ``Sounds.plan``.
        """
        found, slots = Halves(), self._slots
        for frame in frames:
            slot = slots.find(frame, batch)
            if slot is None:
                if len(slots) >= self._count:
                    self._grow()
                slot = slots.take(frame, batch, ended)
                if slot is None:
                    return found
                found.made.append(frame)
                found.slots.append(slot)
            found.index.append(slot)
        return found

    def undo(self, halves: Halves) -> None:
        """Forget what a batch was to compute, and has not."""
        for frame in halves.made:
            self._slots.drop(frame)

    def shed(self) -> int:
        """Give up all of them, and the memory beyond the least; how many bytes that frees."""
        before = self.allocated
        if self._count == self._first:
            return 0
        self._slots = Slots(self._first)
        self.levels.clear()  # before there is anything new: this is for want of memory
        self._resize(self._first)
        return before - self.allocated

    def free(self) -> None:
        """Give up everything."""
        self.levels.clear()
        self._share.used -= self.allocated
        self._count = 0

    def _grow(self) -> None:
        """Have twice as many, where the share and the device allow it."""
        count = min(self._frames, 2 * self._count)
        if self._share.used + (count - self._count) * self.each > self._share.limit:
            return
        try:
            self._resize(count)
        except Exception as error:
            if self._device.fault(error) is not Fault.MEMORY:
                raise
            log.info("no room for more image halves", device=self._device.name)
            self._share.limit = self._share.used

    def _resize(self, count: int) -> None:
        """Have so many slots; what was there stays, where it is to be there."""
        made = {}
        for name, shape in self._shapes.items():
            fresh = row_memory(count, shape, self._dtype, self._device.where)
            old = self.levels.get(name)
            if old is not None:
                fresh[: len(old)].copy_(old)
            made[name] = fresh
        self.levels = made
        self._share.used += (count - self._count) * self.each
        self._count = count
        self._slots.grow(count)


# ---------------------------------------------------------------- faces
@dataclass(frozen=True, slots=True)
class Face:
    """What composing needs of a frame; its memory lives as long as this is held.

    Attributes:
        held: the memory.
        crop: its address.
        row: fields 12 to 17 of a compose job that pastes into the part.
    """

    held: DeviceFace
    crop: int
    row: tuple[int, ...]

    @classmethod
    def of(cls, face: DeviceFace) -> Face:
        """With its addresses read."""
        height, width = face.pixels.shape[:2]
        where = face.rect
        keep = 0 if face.keep is None else face.keep.data_ptr()
        rect = where.x | where.y << 32, where.width | where.height << 32
        row = (face.pixels.data_ptr(), width, height, *rect, keep)
        return cls(face, face.crop.data_ptr(), row)


class Faces:
    """Faces by avatar, frame and part; for any thread.

    Args:
        device: whose memory they lie in.
        limit: bytes.
    """

    def __init__(self, device: Device, limit: int) -> None:
        self._device = device
        self._kept: ByteLru[Face] = ByteLru(limit)
        self._stream = device.stream()

    @property
    def used(self) -> int:
        """Bytes held."""
        return self._kept.used

    @property
    def limit(self) -> int:
        """Bytes that may be held."""
        return self._kept.limit

    def used_by(self, owner: object) -> int:
        """Bytes held for an avatar."""
        return self._kept.used_by(owner)

    def find(self, key: Key) -> Face | None:
        """A face that is there."""
        return self._kept.find(key)

    def load(self, key: Key, package: AvatarPackage, index: int, part: Rect) -> Face:
        """A face, loaded where it is not there; has ended on return.

        Raises:
            AvatarFormatError: the frame is damaged.
            ValueError: the part does not hold the face, or lies outside of the frame.
        """

        def make() -> tuple[Face, int]:
            with self._device.on(self._stream):
                ((face,),) = load_frames(package, self._device.where, [index], lambda _: part)
                # The host's memory may go now, and other streams need not wait for this one.
                self._stream.synchronize()
            return Face.of(face), face.nbytes

        return self._kept.get(key, make)

    def load_some(self, package: AvatarPackage, wanted: Mapping[Key, int]) -> list[Face]:
        """Faces of an avatar by their keys' frames, loaded together where they are not there.

        Args:
            package: the avatar's.
            wanted: key to frame; a key's last part is the part of the frame.

        Raises:
            AvatarFormatError, ValueError: see ``load``.
        """
        missing = {index: key for key, index in wanted.items() if self._kept.find(key) is None}
        made: dict[Key, DeviceFace] = {}
        with self._device.on(self._stream):
            parts = {index: _part_of(key) for index, key in missing.items()}
            for some in load_frames(package, self._device.where, list(missing), parts.__getitem__):
                made |= {missing[face.index]: face for face in some}
            self._stream.synchronize()
        for key, face in made.items():
            self._kept.get(key, partial(_with_size, face))
        return [self.load(key, package, index, _part_of(key)) for key, index in wanted.items()]

    def forget(self, owner: object) -> None:
        """Drop an avatar's."""
        self._kept.forget(owner)

    def shed(self) -> int:
        """Drop all; bytes that are free when no batch holds them any more."""
        used = self._kept.used
        self._kept.clear()
        return used


def _part_of(key: Key) -> Rect:
    part: Rect = key[-1]  # type: ignore[assignment]
    return part


def _with_size(face: DeviceFace) -> tuple[Face, int]:
    return Face.of(face), face.nbytes
