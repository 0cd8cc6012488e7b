# SPDX-License-Identifier: Apache-2.0
"""What streams of H.264 share: the avatar's own frames as planes, and its rest, encoded once.

Who rests sees the avatar's loop, and so do all others. So it is encoded once, in *groups*: what is
shown in some 2 s of the loop, from a key frame on. A stream at rest that comes to the beginning of
a group goes on with it, access unit by access unit, and no encoder works for it. A group that is
not there yet is made aside, when it is asked for; until then the stream's own encoder works.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lipsync_fast.arrays import U8
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.caches import ByteLru, Key, within_memory
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.ipc.messages import Coding
from lipsync_fast.logs import get_logger
from lipsync_fast.media.h264 import MOST_BETWEEN, H264Encoder, i420
from lipsync_fast.provenance import xmp_packet

PLANES_BYTES, GROUPS_BYTES = 256 << 20, 64 << 20
REST_CRF = 2
"""By so much better are groups: they are seen for long, and cost little."""
RESTS, MOST_REST_S = 2, 0.1
GROUPS_ASIDE = 16
"""Groups that may wait to be made; more are asked for again."""
log = get_logger("lipsync.engine")


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the loop a group lies.

    Attributes:
        first: position of its first picture, in one turn of the loop.
        stride: from each to the next one.
        count: pictures.
    """

    first: int
    stride: int
    count: int


def turn_of(package: AvatarPackage) -> int:
    """Positions of the loop after which it begins anew; of a short one, several turns."""
    m = package.manifest
    turn = m.frame_count
    if m.loop == "pingpong" and turn > 1:
        turn = 2 * turn - 2
    return turn * max(1, MOST_BETWEEN // turn)


def group_at(turn: int, position: int, stride: int) -> Place | None:
    """The group that begins with a picture of the loop; None where none does.

    A turn is cut into as many windows of equal length as it takes; a group is what is shown in one.
    """
    at = position % turn
    windows = math.ceil(turn / MOST_BETWEEN)
    window = at * windows // turn
    begin, end = -(-window * turn // windows), -(-(window + 1) * turn // windows)
    if at - stride >= begin:
        return None
    return Place(at, stride, -((at - end) // stride))


class StreamPictures:
    """For any thread.

    Args:
        encoder: knows how the avatar's own frames are scaled.
    """

    def __init__(self, encoder: FrameEncoder) -> None:
        self._encoder = encoder
        self._planes: ByteLru[U8] = ByteLru(within_memory(PLANES_BYTES, 1 / 16))
        self._groups: ByteLru[list[bytes]] = ByteLru(GROUPS_BYTES)
        self._aside = ThreadPoolExecutor(1, "lipsync-groups")
        self._waiting: set[Key] = set()
        self._lock = threading.Lock()
        self._ending = threading.Event()

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes held, by what they are."""
        return {"planes of frames": self._planes.used, "encoded rest": self._groups.used}

    @property
    def is_making(self) -> bool:
        """Whether groups are being made, or wait for it."""
        with self._lock:
            return bool(self._waiting)

    def planes(self, package: AvatarPackage, avatar_frame: int, max_width: int | None) -> U8:
        """The avatar's own frame, I420; not to be written to."""
        key = (package, avatar_frame, max_width)
        found = self._planes.find(key)
        if found is not None:
            return found

        def make() -> tuple[U8, int]:
            made = i420(self._encoder.shown(package, avatar_frame, max_width))
            return made, made.nbytes

        return self._planes.get(key, make)

    def group(self, package: AvatarPackage, place: Place, coding: Coding) -> list[bytes] | None:
        """A group's access units; None where they are not there (see ``make``)."""
        return self._groups.find((package, place, coding))

    def make(
        self, package: AvatarPackage, place: Place, coding: Coding, made: Callable[[], None]
    ) -> bool:
        """Make a group aside, unless it is being made, or too many are.

        Args:
            made: called in the thread when the package is needed no more; not where this gives
                False.
        """
        key: Key = (package, place, coding)
        with self._lock:
            if self._ending.is_set() or key in self._waiting or len(self._waiting) >= GROUPS_ASIDE:
                return False
            self._waiting.add(key)

        def make() -> None:
            try:
                self._groups.get(key, lambda: self._made(package, place, coding))
            except Exception as error:  # it is only dearer without
                log.warning("cannot encode an avatar's rest", reason=str(error)[:300])
            finally:
                with self._lock:
                    self._waiting.discard(key)
                made()

        self._aside.submit(make)
        return True

    def _made(
        self, package: AvatarPackage, place: Place, coding: Coding
    ) -> tuple[list[bytes], int]:
        m = package.manifest
        positions = range(place.first, place.first + place.count * place.stride, place.stride)
        frames = [m.avatar_frame(position) for position in positions]
        height, width = self.planes(package, frames[0], coding.max_width).shape
        xmp = xmp_packet(m.synthetic)
        crf = max(0, coding.crf - REST_CRF)
        encoder = H264Encoder((width, height * 2 // 3), crf, coding.bitrate, xmp, ahead=True)
        units = encoder.finish(self._gently(package, frames, coding.max_width))
        return units, sum(map(len, units))

    def _gently(
        self, package: AvatarPackage, frames: list[int], max_width: int | None
    ) -> Iterator[U8]:
        """The planes of frames, one by one, with rests: others use the same processors for speech.

        The thread's priority is as that of others: with less, it would hold the interpreter without
        having a processor.
        """
        for frame in frames:
            begun = time.monotonic()
            yield self.planes(package, frame, max_width)
            self._ending.wait(min(MOST_REST_S, RESTS * (time.monotonic() - begun)))

    def forget(self, package: AvatarPackage) -> None:
        """Drop what is kept of an avatar."""
        self._planes.forget(package)
        self._groups.forget(package)

    def close(self) -> None:
        """Stop the thread."""
        self._ending.set()
        self._aside.shutdown(wait=True, cancel_futures=True)
