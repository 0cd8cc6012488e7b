# SPDX-License-Identifier: Apache-2.0
"""Old clients' windows laid over each other: what their frames see, against the whole sound."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipsync_fast.arrays import F32
from lipsync_fast.audio.pcm import Resampler
from lipsync_fast.audio.windows import AudioWindow, BlockCache, BlockStream, block_starts
from lipsync_fast.families.wav2lip import WAV2LIP
from lipsync_fast.frontend.legacy.stitch import CHUNK_BYTES, SoundWindow, Stitcher

PROJECTION = np.random.RandomState(0).standard_normal((16 * 80, 512)).astype(np.float32) / 512
REFERENCE, SHORT = AudioWindow(8, 8), AudioWindow(14, 2)
EVEN = AudioWindow(14, 2, gain="auto")
SILENCE = bytes(CHUNK_BYTES)


def features(windows: F32) -> F32:
    """Stands for the encoder: any fixed function of one window."""
    return np.stack([w.reshape(-1) @ PROJECTION for w in windows])


def sound(chunks: int, seed: int = 0) -> bytes:
    """Noise that grows and shrinks, int16 at 24 kHz."""
    rng = np.random.default_rng(seed)
    loud = np.repeat(rng.uniform(0, 6000, chunks), CHUNK_BYTES // 2)
    return (rng.standard_normal(len(loud)) * loud).clip(-32768, 32767).astype("<i2").tobytes()


def window_at(data: bytes, chunk: int, length: int = 16) -> bytes:
    """The window that begins with a chunk."""
    return data[chunk * CHUNK_BYTES : (chunk + length) * CHUNK_BYTES]


def offline(data: bytes, window: AudioWindow) -> F32:
    """The blocks of all frames of a whole sound."""
    pcm = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    resampler, stream = Resampler(24_000), BlockStream(window, features)
    blocks = list(stream.push(np.concatenate([resampler.push(pcm), resampler.finish()])))
    return np.stack([*blocks, *stream.finish()])


class Listener:
    """A stitcher and the engine's cache behind it."""

    def __init__(self) -> None:
        self.stitcher = Stitcher(itertools.count(1).__next__)
        self.cache = BlockCache(features)

    def locate(self, data: bytes, frames: int = 1) -> SoundWindow:
        located = self.stitcher.locate("x", data, frames)
        assert located is not None
        return located

    def block(self, located: SoundWindow, window: AudioWindow, ahead: int = 0) -> F32:
        speech, pcm = located.speech(window, ahead)
        starts = block_starts(speech.frame, window, speech.samples)
        return self.cache.block(speech.stream, starts, pcm, speech.first)


def exact(block: F32, want: F32) -> list[int]:
    """Which vectors are those of the whole sound."""
    return [k for k in range(16) if np.abs(block[k] - want[k]).max() < 1e-4]


def test_with_history_12_of_16_vectors_are_exact() -> None:
    data, listener = sound(40), Listener()
    want = offline(data, REFERENCE)
    for at in range(24):
        block = listener.block(listener.locate(window_at(data, at)), REFERENCE)
        assert exact(block, want[at + 8]) == list(range(12))


def test_a_lone_window_has_10_exact_vectors() -> None:
    """Where it begins on the grid of the features, which repeats every 5 chunks (16 mel rows)."""
    data = sound(60)
    want = offline(data, REFERENCE)
    for at in (5, 20, 40):
        listener = Listener()
        block = listener.block(listener.locate(window_at(data, at)), REFERENCE)
        assert exact(block, want[at + 8]) == list(range(2, 12))


@pytest.mark.parametrize("window", [SHORT, EVEN, WAV2LIP.audio])
def test_a_short_look_ahead_makes_all_vectors_those_of_a_render_bit_for_bit(
    window: AudioWindow,
) -> None:
    data, listener = sound(60), Listener()
    want = offline(data, window)
    for at in range(44):
        block = listener.block(listener.locate(window_at(data, at)), window)
        assert np.array_equal(block, want[at + 8])


@pytest.mark.parametrize(
    "window", [REFERENCE, SHORT, EVEN, AudioWindow(0, 16), AudioWindow(16, 0), WAV2LIP.audio]
)
def test_nothing_that_is_kept_depends_on_where_a_window_ended(window: AudioWindow) -> None:
    data = sound(50, seed=2)
    listener = Listener()
    for at in range(34):
        located = listener.locate(window_at(data, at))
        mine = listener.block(located, window)
        fresh = Listener().block(located, window)
        assert np.abs(mine - fresh).max() < 1e-4


def test_skipped_chunks_are_new_sound_too() -> None:
    data, listener = sound(100, seed=3), Listener()
    want = offline(data, SHORT)
    at, streams, rng = 0, set[int](), random.Random(3)
    while at < 84:
        located = listener.locate(window_at(data, at))
        assert np.array_equal(listener.block(located, SHORT), want[at + 8])
        streams.add(located.stream)
        at += rng.randint(1, 15)
    assert len(streams) == 1


def test_a_window_again_or_an_older_one_is_found() -> None:
    data, listener = sound(60, seed=4), Listener()
    want = offline(data, SHORT)
    for at in (0, 3, 3, 6, 9, 5, 6, 6, 10, 20):
        located = listener.locate(window_at(data, at))
        assert located.frame == at + 8
        assert np.array_equal(listener.block(located, SHORT), want[at + 8])


def test_another_sound_begins_anew_and_the_first_comes_back() -> None:
    one, two, listener = sound(40, seed=5), sound(40, seed=6), Listener()
    a, b = listener.locate(window_at(one, 0)), listener.locate(window_at(two, 0))
    c = listener.locate(window_at(one, 1))
    assert len({a.stream, b.stream, c.stream}) == 3
    assert a.frame == b.frame == c.frame == 8


def test_avatars_do_not_share_a_sound() -> None:
    one, two = sound(40, seed=5), sound(40, seed=6)
    stitcher = Stitcher(itertools.count(1).__next__)
    for at in range(5):
        x, y = stitcher.locate("x", window_at(one, at)), stitcher.locate("y", window_at(two, at))
        assert x is not None
        assert y is not None
        assert (x.stream, x.frame, y.stream, y.frame) == (1, at + 8, 2, at + 8)


def test_one_chunk_sixteen_times_is_a_sound_of_its_own() -> None:
    data, listener = sound(30, seed=7), Listener()
    located = [listener.locate(window_at(data, k, 1) * 16) for k in range(30)]
    assert [h.frame for h in located] == [8] * 30
    assert len({h.stream for h in located}) == 30


def test_silence_goes_on_as_the_sound_did_before_it() -> None:
    data = sound(20, seed=8) + SILENCE * 40 + sound(20, seed=9)
    listener = Listener()
    want = offline(data, SHORT)
    for at in range(0, 64, 2):  # every second chunk: the shift in silence is that before it
        located = listener.locate(window_at(data, at))
        assert located.frame == at + 8
        assert np.array_equal(listener.block(located, SHORT), want[at + 8])


def test_silence_from_the_start_goes_on_by_one() -> None:
    data, listener = SILENCE * 30 + sound(20, seed=10), Listener()
    assert [listener.locate(window_at(data, at)).frame for at in range(30)] == list(range(8, 38))


def test_a_little_silence_joins_no_sounds() -> None:
    one, two = sound(15, seed=11) + SILENCE, SILENCE + sound(15, seed=12)
    listener = Listener()
    assert listener.locate(one).stream != listener.locate(two).stream


@pytest.mark.parametrize("size", [2, 3, 100, 1919, 1920, 1921, 5 * 1920, 6 * 1920 + 7, 33 * 1920])
def test_windows_of_other_lengths(size: int) -> None:
    data, listener = sound(60, seed=13)[:size], Listener()
    located = listener.locate(data)
    assert located.frame == min(8, max(1, size // 1920) - 1)
    block = listener.block(located, SHORT)
    assert np.isfinite(block).all()
    assert block.any()


def test_a_short_window_is_a_whole_sound() -> None:
    data, listener = sound(4, seed=14), Listener()
    block = listener.block(listener.locate(data), REFERENCE)
    assert np.array_equal(block, offline(data, REFERENCE)[3])


@pytest.mark.parametrize("data", [b"", b"\1"])
def test_no_audio(data: bytes) -> None:
    assert Stitcher(itertools.count().__next__).locate("x", data) is None


def test_frames_behind_the_current_one() -> None:
    data, listener = sound(60, seed=15), Listener()
    want = offline(data, SHORT)
    located = listener.locate(data[: 55 * CHUNK_BYTES], frames=40)
    for ahead in range(40):
        assert np.array_equal(listener.block(located, SHORT, ahead), want[8 + ahead])
    located = listener.locate(window_at(data, 30))
    assert located.frame == 38


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(
        st.one_of(
            st.binary(max_size=64),
            st.tuples(st.integers(0, 12), st.integers(0, 40)),
        ),
        max_size=20,
    ),
    window=st.builds(lambda after: AudioWindow(16 - after, after), st.integers(0, 16))
    | st.just(WAV2LIP.audio),
)
def test_any_windows_in_any_order(
    words: list[bytes | tuple[int, int]], window: AudioWindow
) -> None:
    """Few different chunks, so that much fits by chance; nothing is kept without bound."""
    pool = [SILENCE, b"\1\0" * 960, *(sound(1, seed) for seed in range(3))]
    stitcher = Stitcher(itertools.count(1).__next__)
    cache = BlockCache(features)
    for word in words:
        if isinstance(word, bytes):
            data = b"".join(pool[b % len(pool)] for b in word) + word[:1]
        else:
            data = (pool * 12)[word[0]] * word[1]
        located = stitcher.locate("x", data)
        if located is None:
            continue
        speech, pcm = located.speech(window)
        starts = block_starts(speech.frame, window, speech.samples)
        assert np.isfinite(cache.block(speech.stream, starts, pcm, speech.first)).all()
        assert len(located.pcm) < 100 * 640
