# SPDX-License-Identifier: Apache-2.0
"""What a viewer costs: bits and processor time a frame, JPEGs against streams of H.264.

    python bench/streams.py [--avatar demo] [--seconds 6] [--rounds 3] [--out FILE.json]

The avatar says the shipped recording, and rests; an engine's own parts encode it, in one process
and without a server. Each picture is encoded when the one before it is done, as of one session.
Processor time is that of all threads: of JPEGs, encoding what the mouth touches; of H.264, planes,
pasting and encoding. What is done once for an avatar (its frames' planes, its rest) is done before,
and said by itself. "within" is from a picture to its access unit: the delay that a stream adds.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import lipsync_fast
from lipsync_fast.arrays import U8
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.benchmark import program
from lipsync_fast.cli.demo import demo_recording
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends import create_backend
from lipsync_fast.engine.changes import Place
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.engine.stream_pictures import group_at, turn_of
from lipsync_fast.engine.streams import Streams, Wanted
from lipsync_fast.geometry import EMPTY, Rect
from lipsync_fast.ipc.messages import Coding, Encode, crf_of
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.media.h264 import i420
from lipsync_fast.timing import FPS

QUALITIES = (50, 65, 80)
HELD = 30
"""Times that a picture is held; fewer than a group has."""
Figures = dict[str, float]


def nothing(avatar: RegisteredAvatar) -> None:
    """The avatar stays open anyway."""


class Encoding:
    """An engine's encoder of streams, and one session's."""

    def __init__(self, avatar: RegisteredAvatar, coding: Coding, encoder: FrameEncoder) -> None:
        self._avatar, self._coding = avatar, coding
        self._cpu_time = create_backend("cpu", 1).cpu_time
        self.streams = Streams(encoder, 1, self._cpu_time, nothing, nothing, lambda: None)
        self._last = 0

    def picture(
        self, slot: int, avatar_frame: int, part: U8 | None = None, box: Rect = EMPTY
    ) -> bytes:
        """The access unit of the next picture."""
        number = self._last + 1
        encode = Encode(1, 0, number, self._last, slot, 1, "x", avatar_frame, self._coding, box)
        front: Any = self  # only told apart
        assert self.streams.push(Wanted(front, encode, self._avatar, part, time.monotonic_ns()))
        while not (done := self.streams.taken()):
            time.sleep(0.0002)
        if done[0].error is not None:
            raise done[0].error
        self._last = number
        return done[0].unit


def measured(count: int, make: Callable[[int], int]) -> Figures:
    """Figures of so many pictures; ``make`` gives the bytes of one."""
    used, total, within = time.process_time(), 0, []
    for number in range(count):
        begun = time.perf_counter()
        total += make(number)
        within.append(1e3 * (time.perf_counter() - begun))
    return {
        "kbit_s": total * 8 * FPS / count / 1e3,
        "cpu_ms": 1e3 * (time.process_time() - used) / count,
        "within_ms": statistics.median(within),
    }


def all_groups(stream: Encoding, package: AvatarPackage, coding: Coding) -> Figures:
    """Have the avatar's rest encoded; what that takes a picture of it, once."""
    pictures, turn = stream.streams.pictures, turn_of(package)
    used = time.process_time()
    for position in range(turn):
        place = group_at(turn, position, 1)
        if place is not None:
            pictures.make(package, place, coding, lambda: None)
    while pictures.is_making:
        time.sleep(0.05)
    return {
        "cpu_ms": 1e3 * (time.process_time() - used) / turn,
        "bytes": pictures.cache_bytes["encoded rest"],
    }


def one_round(avatar: RegisteredAvatar, frames: list[Any]) -> dict[str, Figures]:
    """All forms, once."""
    package, encoder = avatar.package, FrameEncoder()
    m, rows = package.manifest, dict[str, Figures]()
    variant = Variant(m.jpeg.quality)
    for index in range(m.frame_count):
        encoder.original(package, index, variant)
        part = encoder.part(package, index, variant)
        encoder.frame(package, index, variant, package.picture(index)[part.slices])

    def jpeg(number: int) -> int:
        frame = frames[number]
        part = encoder.part(package, frame.avatar_frame, variant)
        return len(encoder.frame(package, frame.avatar_frame, variant, frame.image[part.slices]))

    def jpeg_at_rest(number: int) -> int:
        return len(encoder.original(package, m.avatar_frame(number), variant))

    turn = turn_of(package)
    begin = next(k for k in range(10 * turn + 1, 11 * turn) if group_at(turn, k, 1))
    rows["JPEG, speaking"] = measured(len(frames), jpeg)
    rows["JPEG, at rest"] = measured(turn, jpeg_at_rest)
    for quality in QUALITIES:
        coding = Coding(crf_of(quality))
        stream = Encoding(avatar, coding, encoder)
        for index in range(m.frame_count):
            stream.streams.pictures.planes(package, index, None)

        def speaking(number: int, stream: Encoding = stream) -> int:
            frame = frames[number]
            place = Place.of_face(package, frame.avatar_frame, package.frame_size)
            assert place.cut is not None
            part = i420(frame.image[place.cut.box.slices]).reshape(-1)
            return len(stream.picture(number, frame.avatar_frame, part, place.cut.box))

        def held(number: int, stream: Encoding = stream) -> int:
            # In the middle of a group, so that its own encoder works.
            return len(stream.picture(begin + 1 + number, 0))

        def resting(number: int, stream: Encoding = stream) -> int:
            return len(stream.picture(number, m.avatar_frame(number)))

        name = f"H.264, quality {quality}"
        rows[f"{name}, speaking"] = measured(len(frames), speaking)
        rows[f"{name}, held"] = measured(HELD, held)
        rows[f"{name}, rest, once for all"] = all_groups(stream, package, coding)
        rows[f"{name}, at rest"] = measured(turn, resting)
        stream.streams.close()
    return rows


def main() -> int:
    """Measure and print."""
    args = program.options(__doc__, avatar="demo", seconds=6.0, rounds=3, out=None)
    path = AvatarLibrary().find(args.avatar)
    with MediaSource(demo_recording()) as source:
        sound = np.concatenate(list(source))[: round(16_000 * args.seconds)]
    with lipsync_fast.open(path, backend="cpu") as speaker:
        frames = list(speaker.render(sound, 16_000))
    backend = create_backend("cpu", 1)
    avatar = RegisteredAvatar.open(backend, path)
    rounds, load = [], round(os.getloadavg()[0], 1)
    for number in range(args.rounds):
        rounds.append(one_round(avatar, frames))
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    rows = program.medians(rounds)
    for name, row in rows.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in row.items()))
    size = "{} x {}".format(*avatar.package.frame_size)
    about = {"avatar": args.avatar, "size": size, "rounds": args.rounds, "load": load}
    program.keep(args.out, **about, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
