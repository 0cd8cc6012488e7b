# SPDX-License-Identifier: Apache-2.0
"""What frames see of an utterance is what they see of the whole recording; memory is bounded."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast.audio.windows import AudioWindow, BlockCache, BlockStream, block_starts
from lipsync_fast.frontend.playout.utterance import Utterance

PROJECTION = np.random.RandomState(0).standard_normal((16 * 80, 512)).astype(np.float32)


def features(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.stack([w.reshape(-1) @ PROJECTION for w in windows])


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(1, 25_000),
    after=st.sampled_from([8, 2, 0, 16]),
    sizes=st.lists(st.integers(1, 6_000), max_size=30),
    behind=st.integers(0, 6),
    even=st.booleans(),
)
def test_live_frames_equal_the_recordings(
    length: int, after: int, sizes: list[int], behind: int, even: bool
) -> None:
    """Made as soon as decided, up to ``behind`` frames later, and forgotten at once."""
    window = AudioWindow(before=16 - after, after=after, gain="auto" if even else msgspec.UNSET)
    pcm = np.random.RandomState(length).uniform(-0.5, 0.5, length).astype(np.float32)
    pcm *= np.linspace(0.01, 1, length, dtype=np.float32)
    stream = BlockStream(window, features)
    wanted = [*stream.push(pcm), *stream.finish()]
    utterance, cache, got, at = Utterance(1, window), BlockCache(features), [], 0

    def make(last: int) -> None:
        while len(got) < last:
            speech, seen = utterance.speech(len(got))
            starts = block_starts(speech.frame, window, speech.samples)
            got.append(cache.block(speech.stream, starts, seen, speech.first))
            utterance.forget(len(got))

    for size in [*sizes, length]:
        utterance.push(pcm[at : at + size])
        at = min(length, at + size)
        make(utterance.decided - behind)
    utterance.end()
    assert utterance.frames == len(wanted) == utterance.decided
    make(utterance.decided)
    assert all(np.array_equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_what_is_not_decided_is_refused() -> None:
    utterance = Utterance(1, AudioWindow(8, 8))
    utterance.push(np.zeros(7_199, np.float32))
    assert utterance.decided == 0
    with pytest.raises(ValueError, match="not decided"):
        utterance.speech(0)
    utterance.push(np.zeros(1, np.float32))
    assert utterance.decided == 1
    assert utterance.speech(-2)[0].frame == -2, "the mouth gets ready before it speaks"
    assert utterance.speech(-20)[1].size == 0, "long before there is nothing to see"
    utterance.end()
    with pytest.raises(ValueError, match="after the end"):
        utterance.push(np.zeros(1, np.float32))
    assert utterance.speech(20)[0].frame == 20, "behind the last frame there is silence"


def test_memory_is_bounded() -> None:
    utterance, largest = Utterance(1, AudioWindow()), 0
    for _ in range(500):
        utterance.push(np.zeros(640, np.float32))
        utterance.forget(utterance.decided)
        largest = max(largest, len(utterance._pcm))
    assert largest < 32_000
