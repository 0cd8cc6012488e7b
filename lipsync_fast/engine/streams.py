# SPDX-License-Identifier: Apache-2.0
"""Streams of H.264: pictures in, in the order in which they are shown; access units out.

    Encode records ─► per stream, in order ─► a few threads: planes, paste, encode ─► taken

Nothing here is a promise to anybody: each record says which access unit its client has got last.
Where that is not what this engine's encoder made last (another engine did, one was left out on its
way, the client asks for it), the picture becomes a key frame.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lipsync_fast.arrays import U8
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.cpu_time import CpuTime
from lipsync_fast.engine.front_link import FrontLink
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.engine.stream_pictures import Place, StreamPictures, group_at, turn_of
from lipsync_fast.ipc.messages import Coding, Encode
from lipsync_fast.media.h264 import MOST_BETWEEN, SOFTWARE, H264Encoder, pasted
from lipsync_fast.provenance import xmp_packet
from lipsync_fast.timing import NS_PER_S

MOST_WAITING = 64
"""Pictures of one stream that may wait; more are refused."""
MOST_ENCODERS = 512
"""Encoders that are kept open, some 12 MB each at 720p; beyond, those that rest are closed."""
UNUSED_NS = 30 * NS_PER_S
"""An encoder that has made nothing for so long is closed: its stream rests."""
FIRST_GUESS_MS = 4.0
"""What a picture of a megapixel takes, before any was encoded."""
WEIGHT = 0.02
"""Of the newest picture in what one takes on the average."""
Unit = tuple[bytes, bool]


@dataclass(slots=True)
class Wanted:
    """A picture of a stream that waits, or is being encoded.

    Attributes:
        front: where it came from, and its answer goes.
        avatar: held for it until it is answered or dropped.
        part: I420, to be put into the avatar's frame at ``encode.box``; None for its own picture.
        taken_ns: when it was taken, CLOCK_MONOTONIC.
    """

    front: FrontLink
    encode: Encode
    avatar: RegisteredAvatar
    part: U8 | None
    taken_ns: int


@dataclass(slots=True)
class Done:
    """A picture that was encoded, or could not be."""

    wanted: Wanted
    unit: bytes = b""
    key: bool = False
    error: Exception | None = None


@dataclass(slots=True)
class Stream:
    """One client's stream, as far as this engine knows it; its pictures are encoded one by one."""

    waiting: deque[Wanted] = field(default_factory=deque)
    busy: bool = False
    ended: bool = False
    about: tuple[AvatarPackage, Coding] | None = None
    """What the encoder, and the group, are of."""
    encoder: H264Encoder | None = None
    planes: U8 | None = None
    """The picture that is put together; always the same memory."""
    encoded: int = 0
    """Number of the access unit that the encoder has made last."""
    key_slot: int = 0
    """Slot of its last key frame."""
    group: list[bytes] | None = None
    """The group that the stream follows."""
    place: Place | None = None
    followed: int = 0
    """Number of the access unit that was taken from the group last; ``step``: which it was."""
    step: int = 0
    used_ns: int = 0


class Streams:
    """All streams of an engine. ``push``, ``taken`` and the like: one thread, the engine's.

    Args:
        encoder: knows how the avatar's own frames are scaled.
        threads: that encode.
        cpu_time: counts what they spend.
        hold, release: an avatar is needed, and no more; called in the engine's thread only.
        wake: called in other threads when ``taken`` has something to give.
        name: of the encoder (``media.h264.encoder_name``).
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        threads: int,
        cpu_time: CpuTime,
        hold: Callable[[RegisteredAvatar], None],
        release: Callable[[RegisteredAvatar], None],
        wake: Callable[[], None],
        name: str = SOFTWARE,
    ) -> None:
        self._name, self._threads, self._cpu_time = name, threads, cpu_time
        self._hold, self._release, self._wake = hold, release, wake
        self.pictures = StreamPictures(encoder)
        self._pool = ThreadPoolExecutor(threads, "lipsync-h264")
        self._streams: dict[Hashable, Stream] = {}
        self._done: deque[Done] = deque()
        self._missed: deque[tuple[RegisteredAvatar, Place, Coding]] = deque()
        """Groups that were looked for in vain."""
        self._let_go: deque[RegisteredAvatar] = deque()
        """Avatars whose groups were made."""
        self._lock = threading.Lock()
        self._ms_per_megapixel = FIRST_GUESS_MS
        self._megapixels = 0.92
        self.in_flight = 0

    # ------------------------------------------------------------ the engine's thread
    @property
    def has_news(self) -> bool:
        """Whether ``taken`` has something to give."""
        return bool(self._done or self._let_go or self._missed)

    @property
    def frames_per_s(self) -> float:
        """Pictures a second that all threads encode, by what those have taken that were; 0 where
        there is no encoder."""
        if not self._name:
            return 0.0
        with self._lock:
            each_ms = self._ms_per_megapixel * self._megapixels
        return self._threads * 1000 / each_ms

    def push(self, wanted: Wanted) -> bool:
        """Encode a picture behind those of its stream; False where too many wait."""
        key = (wanted.front, wanted.encode.session)
        stream = self._streams.get(key)
        if stream is None:
            self._close_unused(wanted.taken_ns)
            stream = self._streams[key] = Stream()
        with self._lock:
            if len(stream.waiting) >= MOST_WAITING:
                return False
            stream.waiting.append(wanted)
            stream.used_ns = wanted.taken_ns
            begin, stream.busy = not stream.busy, True
        self._hold(wanted.avatar)
        self.in_flight += 1
        if begin:
            self._pool.submit(self._work, stream)
        return True

    def taken(self) -> list[Done]:
        """What was encoded since the last time, in its order; the avatars are released."""
        while self._missed:  # before what was encoded: that holds their avatars
            self._make_group(*self._missed.popleft())
        while self._let_go:
            self._release(self._let_go.popleft())
        done = []
        while self._done:
            done.append(self._done.popleft())
            self.in_flight -= 1
            self._release(done[-1].wanted.avatar)
        return done

    def end(self, front: FrontLink, session: int | None = None) -> None:
        """A stream has ended, or all of a front: what waits of it is dropped."""
        for key in [k for k in self._streams if self._is_of(k, front, session)]:
            stream = self._streams.pop(key)
            with self._lock:
                dropped, stream.ended = list(stream.waiting), True
                stream.waiting.clear()
            for wanted in dropped:
                self.in_flight -= 1
                self._release(wanted.avatar)

    def _make_group(self, avatar: RegisteredAvatar, place: Place, coding: Coding) -> None:
        def made() -> None:  # in its thread
            self._let_go.append(avatar)
            self._wake()

        self._hold(avatar)
        if not self.pictures.make(avatar.package, place, coding, made):
            self._release(avatar)

    @staticmethod
    def _is_of(key: Hashable, front: FrontLink, session: int | None) -> bool:
        assert isinstance(key, tuple)
        return key[0] is front and session in (None, key[1])

    def _close_unused(self, now_ns: int) -> None:
        """Close encoders that rest, and the one that rests for longest where there are many."""
        idle = [(s.used_ns, key) for key, s in self._streams.items() if not s.busy]
        idle.sort(key=lambda entry: entry[0])
        for used_ns, key in idle:
            if len(self._streams) < MOST_ENCODERS and now_ns - used_ns < UNUSED_NS:
                break
            del self._streams[key]

    def close(self) -> None:
        """Stop the threads; what was not encoded gets no answer."""
        for stream in self._streams.values():
            with self._lock:
                stream.waiting.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.pictures.close()

    # ------------------------------------------------------------ the encoding threads
    def _work(self, stream: Stream) -> None:
        """Encode what waits of a stream."""
        while True:
            with self._lock:
                if not stream.waiting:
                    stream.busy = False
                    if stream.ended:
                        stream.encoder = None
                    return
                wanted = stream.waiting.popleft()
            done = Done(wanted)
            try:
                done.unit, done.key = self._encoded(stream, wanted)
            except Exception as error:
                done.error, stream.about = error, None
            self._done.append(done)
            self._wake()

    def _encoded(self, stream: Stream, wanted: Wanted) -> Unit:
        encode, package = wanted.encode, wanted.avatar.package
        about = (package, encode.coding)
        if stream.about != about:
            stream.about, stream.encoder, stream.planes = about, None, None
            stream.group, stream.encoded, stream.followed = None, 0, 0
        if wanted.part is None:
            unit = self._of_group(stream, wanted)
            if unit is not None:
                return unit
        stream.group = None
        return self._of_encoder(stream, wanted)

    def _of_group(self, stream: Stream, wanted: Wanted) -> Unit | None:
        """The next access unit of what is encoded already; None where it is not there."""
        encode, package = wanted.encode, wanted.avatar.package
        turn = turn_of(package)
        at, place = encode.slot % turn, stream.place
        if stream.group is not None and place is not None:
            step = stream.step + 1
            follows = encode.after and encode.after == stream.followed
            if follows and step < place.count and at == place.first + step * place.stride:
                stream.step, stream.followed = step, encode.number
                return stream.group[step], False
        begins = group_at(turn, encode.slot, encode.stride)
        if begins is None:
            return None
        group = self.pictures.group(package, begins, encode.coding)
        if group is None:
            self._missed.append((wanted.avatar, begins, encode.coding))
            return None
        stream.group, stream.place, stream.step = group, begins, 0
        stream.followed, stream.key_slot = encode.number, encode.slot
        return group[0], True

    def _of_encoder(self, stream: Stream, wanted: Wanted) -> Unit:
        encode, package = wanted.encode, wanted.avatar.package
        begun = time.thread_time_ns()
        with self._cpu_time.on("H.264"):
            own = self.pictures.planes(package, encode.avatar_frame, encode.coding.max_width)
            planes = own
            if wanted.part is not None:
                if stream.planes is None or stream.planes.shape != own.shape:
                    stream.planes = np.empty_like(own)
                planes = pasted(own, encode.box, wanted.part, stream.planes)
            if stream.encoder is None:
                stream.encoder, stream.encoded = self._new_encoder(package, encode.coding, own), 0
            over = not 0 <= encode.slot - stream.key_slot < MOST_BETWEEN
            wants_key = over or encode.after == 0 or encode.after != stream.encoded
            unit, key = stream.encoder.encode(planes, wants_key)
        stream.encoded = encode.number
        if key:
            stream.key_slot = encode.slot
        self._took(time.thread_time_ns() - begun, own)
        return unit, key

    def _new_encoder(self, package: AvatarPackage, coding: Coding, own: U8) -> H264Encoder:
        size = own.shape[1], own.shape[0] * 2 // 3
        xmp = xmp_packet(package.manifest.synthetic)
        return H264Encoder(size, coding.crf, coding.bitrate, xmp, self._name)

    def _took(self, ns: int, own: U8) -> None:
        megapixels = own.size / 1.5e6
        with self._lock:
            newest = ns / 1e6 / megapixels
            self._ms_per_megapixel += WEIGHT * (newest - self._ms_per_megapixel)
            self._megapixels += WEIGHT * (megapixels - self._megapixels)


def encoding_threads(threads: int | None) -> int:
    """How many threads encode, beside so many that make frames (None: on a GPU)."""
    return threads or max(1, len(os.sched_getaffinity(0)) // 2)
