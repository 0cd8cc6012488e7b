# SPDX-License-Identifier: Apache-2.0
"""How many frames a second an engine makes."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.engine.backends.base import AUDIO_BLOCK_ROWS, FEATURE_SIZE, Backend, RegionJob
from lipsync_fast.engine.served import Served
from lipsync_fast.engine.splice import FrameEncoder, Variant

MEASURE_S = 0.25
"""Of work that is counted."""
FRAMES = 4
"""Of the avatar that are used; each is made once beforehand, as all are in the long run."""


def measure(
    backend: Backend, encoder: FrameEncoder, served: Served, seconds: float = MEASURE_S
) -> float:
    """Frames a second of an avatar with all threads, from audio features to JPEGs.

    The first frames are not counted; they also make the first real ones quick. On a CPU it goes by
    processor time, as if the threads had their processors to themselves: what else starts at the
    same time, another engine most likely, takes part of them only for now.

    Args:
        seconds: how long to make frames that are counted; with 0, only the first ones are made.
    """
    package = served.package
    variant = Variant(package.manifest.jpeg.quality)
    rng = np.random.default_rng(0)
    mel = rng.standard_normal((1, 16, 80)).astype(np.float32)
    block = rng.standard_normal((AUDIO_BLOCK_ROWS, FEATURE_SIZE)).astype(np.float32)
    count = min(FRAMES, package.manifest.frame_count)

    def submit(index: int) -> Future[bytes]:
        backend.features(served.loaded, mel)  # one new vector for each frame of a sound
        part = encoder.part(package, index, variant)

        def finish(_: int, image: NDArray[np.uint8]) -> bytes:
            return encoder.frame(package, index, variant, image)

        job = RegionJob(served.loaded, index, block, part=part)
        return backend.submit([job], finish)[0]

    for future in [submit(index) for index in range(count)]:
        future.result()
    if seconds == 0:
        return 0.0
    made, begun, used = 0, time.perf_counter(), time.process_time()
    flying: deque[Future[bytes]] = deque()
    while time.perf_counter() - begun < seconds:
        while len(flying) < backend.depth:
            flying.append(submit(made % count))
            made += 1
        flying.popleft().result()
    for future in flying:
        future.result()
    wall, cpu = time.perf_counter() - begun, time.process_time() - used
    threads = getattr(backend, "threads", None)
    return made / wall if threads is None else made * threads / cpu
