# SPDX-License-Identifier: Apache-2.0
"""How many frames a second an engine makes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.audio.windows import FEATURE_SIZE, block_starts, samples_seen
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.base import Backend, Coded, RegionJob, Sound
from lipsync_fast.engine.splice import FrameEncoder, Variant, how_coded

MEASURE_S = 0.25
"""How long work is counted."""
FRAMES = 4
"""The avatar's frames that are used; each is made once beforehand, as all are in the long run."""
SOUND_FRAMES = 100
"""A sound's frames, for a backend that takes sound; then another one begins."""
SETTLE_S = 8.0
"""How long a backend is waited for that still prepares what makes it fast."""


def measure(
    backend: Backend, encoder: FrameEncoder, avatar: RegisteredAvatar, seconds: float = MEASURE_S
) -> float:
    """Frames a second of an avatar with all of the device, from audio features to JPEGs.

    The first frames are not counted; they also make the first real ones quick. As many jobs as
    ``depth`` says are on their way at any time. On a CPU it goes by processor time, as if the
    threads had their processors to themselves: what else starts at the same time, another engine
    most likely, takes part of them only for now. On any other device it goes by the clock.

    Args:
        seconds: how long to make frames that are counted; with 0, only the first ones are made.
    """
    submit = _submitter(backend, encoder, avatar)
    for future in [submit(index) for index in range(_count(avatar))]:
        future.result()
    if seconds == 0:
        return 0.0
    backend.settle(SETTLE_S)
    made, begun, used = 0, time.perf_counter(), time.process_time()
    flying: deque[Future[bytes]] = deque()
    while time.perf_counter() - begun < seconds:
        while len(flying) < backend.depth:
            flying.append(submit(made))
            made += 1
        flying.popleft().result()
    for future in flying:
        future.result()
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    return made / wall if backend.threads is None else made * backend.threads / cpu


def _count(avatar: RegisteredAvatar) -> int:
    return min(FRAMES, avatar.package.manifest.frame_count)


def _submitter(
    backend: Backend, encoder: FrameEncoder, avatar: RegisteredAvatar
) -> Callable[[int], Future[bytes]]:
    """Begins the picture of that number, as one of a sound that goes on: one new audio vector."""
    package = avatar.package
    variant = Variant(package.manifest.jpeg.quality)
    how = how_coded(package.manifest, variant.quality)
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((1, 16, 80)).astype(np.float32)
    vectors = package.manifest.audio.vectors
    block = rng.standard_normal((vectors, FEATURE_SIZE)).astype(np.float32)
    noise = (rng.standard_normal(640 * (SOUND_FRAMES + 16)) * 0.1).astype(np.float32)

    def submit(number: int) -> Future[bytes]:
        index = number % _count(avatar)
        sound = None
        if backend.takes_sound:
            sound = _sound(avatar, number, noise)
        else:
            backend.features(avatar.loaded, mel)
        place = encoder.place(package, index, variant)
        encode = place.encode(how) if backend.encodes else None

        def finish(_: int, image: NDArray[np.uint8] | Coded) -> bytes:
            return encoder.frame(package, index, variant, image)

        heard = None if backend.takes_sound else block
        job = RegionJob(avatar.loaded, index, heard, 1.0, place.part, sound, encode)
        return backend.submit([job], finish)[0]

    return submit


def _sound(avatar: RegisteredAvatar, number: int, noise: NDArray[np.float32]) -> Sound:
    starts = block_starts(number % SOUND_FRAMES, avatar.package.manifest.audio)
    first, end = samples_seen(starts)
    stream = ("capacity", number // SOUND_FRAMES)
    return Sound(stream, tuple(starts), noise[first:end], first)
