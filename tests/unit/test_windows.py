# SPDX-License-Identifier: Apache-2.0
"""The audio blocks of a stream against a plain offline computation from REFERENCE's rules."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast.audio.mel_numpy import mel
from lipsync_fast.audio.windows import (
    MIN_SAMPLES,
    AudioWindow,
    BlockCache,
    BlockStream,
    block_starts,
    frame_sees,
    is_decided,
    samples_seen,
)

PROJECTION = np.random.RandomState(0).standard_normal((16 * 80, 512)).astype(np.float32)


def features(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Stands for the encoder: any fixed function of one window."""
    return np.stack([w.reshape(-1) @ PROJECTION for w in windows])


def offline(pcm: NDArray[np.float32], window: AudioWindow) -> NDArray[np.float32]:
    """All blocks at once, as the reference computes them."""
    count = -(-len(pcm) // 640)
    rows = mel(np.pad(pcm, (0, max(0, 3_000 - len(pcm)))))
    total = int((len(rows) - 16) / 80 * 25) + 2
    starts = [min(int(3.2 * j), len(rows) - 16) for j in range(total)]
    vectors = features(np.stack([rows[s : s + 16] for s in starts]))
    padded = np.concatenate([vectors[:1], vectors, vectors[-1:]])
    out = np.zeros((count, 16, 512), np.float32)
    for i in range(count):
        for k, p in enumerate(range(i - window.before, i + window.after)):
            if 0 <= p < len(padded):
                out[i, k] = padded[p]
    return out


def streamed(
    pcm: NDArray[np.float32], window: AudioWindow, sizes: list[int]
) -> NDArray[np.float32]:
    stream, blocks, at = BlockStream(window, features), [], 0
    for size in sizes:
        blocks += list(stream.push(pcm[at : at + size]))
        at += size
    blocks += [*stream.push(pcm[at:]), *stream.finish()]
    return np.stack(blocks) if blocks else np.zeros((0, 16, 512), np.float32)


@pytest.mark.parametrize("length", [1, 319, 320, 640, 641, 2_999, 3_000, 3_199, 5_000, 16_000])
@pytest.mark.parametrize("after", [8, 2, 0, 16])
def test_equals_the_offline_rule(length: int, after: int) -> None:
    window = AudioWindow(before=16 - after, after=after)
    pcm = np.random.RandomState(length).uniform(-0.5, 0.5, length).astype(np.float32)
    got, want = streamed(pcm, window, []), offline(pcm, window)
    assert got.shape == want.shape == (-(-length // 640), 16, 512)
    assert np.abs(got - want).max() < 2e-3  # sums of 1280 products; mel agrees to 1e-5


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 20_000),
    after=st.sampled_from([8, 2, 0, 16]),
    sizes=st.lists(st.integers(0, 5_000), max_size=10),
)
def test_pieces_equal_the_whole_bit_for_bit(length: int, after: int, sizes: list[int]) -> None:
    window = AudioWindow(before=16 - after, after=after)
    pcm = np.random.RandomState(length).uniform(-0.5, 0.5, length).astype(np.float32)
    assert np.array_equal(streamed(pcm, window, sizes), streamed(pcm, window, []))


def test_a_frame_comes_as_soon_as_its_look_ahead_is_there() -> None:
    assert AudioWindow(8, 8).lookahead_samples == 7_240  # the reference's 452.5 ms
    for after in (2, 8):
        window = AudioWindow(before=16 - after, after=after)
        stream = BlockStream(window, features)
        frame = 10 - (after - 2)  # its last feature begins on a whole row: the longest wait
        need = 640 * frame + window.lookahead_samples
        assert len(list(stream.push(np.zeros(need - 1, np.float32)))) == frame
        assert len(list(stream.push(np.zeros(1, np.float32)))) == 1


def test_memory_does_not_grow_with_the_stream() -> None:
    stream = BlockStream(AudioWindow(), features)
    sizes = []
    for _ in range(60):
        list(stream.push(np.zeros(6_400, np.float32)))
        sizes.append((len(stream._rows), len(stream._vectors)))
    assert max(sizes[30:]) <= max(sizes[:30])


def test_no_samples_make_no_frames() -> None:
    assert len(streamed(np.zeros(0, np.float32), AudioWindow(), [])) == 0


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 20_000),
    after=st.sampled_from([8, 2, 0, 16]),
    order=st.randoms(use_true_random=False),
    known=st.booleans(),
)
def test_frames_cut_out_singly_equal_the_stream(
    length: int, after: int, order: random.Random, known: bool
) -> None:
    """In any order, from a cache that forgets, before or after the sound's length is known."""
    window = AudioWindow(before=16 - after, after=after)
    pcm = np.random.RandomState(length).uniform(-0.5, 0.5, length).astype(np.float32)
    whole = streamed(pcm, window, [])
    padded = np.pad(pcm, (0, max(0, MIN_SAMPLES - length)))
    cache = BlockCache(features, streams=1, depth=16)
    frames = list(range(len(whole)))
    order.shuffle(frames)
    for i in frames:
        samples = None if not known and is_decided(i, window, length) else length
        starts = block_starts(i, window, samples)
        first, end = samples_seen(starts)
        assert np.array_equal(cache.block(1, starts, padded[first:end], first), whole[i])
        if order.random() < 0.1:
            cache.block(2, starts, padded[first:end], first)


@given(frame=st.integers(-40, 5_000), after=st.integers(0, 16))
def test_what_a_frame_sees_is_what_its_windows_read(frame: int, after: int) -> None:
    window = AudioWindow(before=16 - after, after=after)
    assert frame_sees(frame, window) == samples_seen(block_starts(frame, window))


def test_streams_that_are_not_used_any_more_are_forgotten() -> None:
    """However many sounds come one after the other, what is kept is bounded by those in use."""
    window, now = AudioWindow(14, 2), [0.0]
    cache = BlockCache(features, rest_s=10.0, clock=lambda: now[0])
    pcm = np.zeros(16_000, np.float32)
    starts = block_starts(0, window, len(pcm))
    for sound in range(1_000):
        now[0] += 1.0
        for stream in ("goes on", sound):
            cache.block(stream, starts, pcm, 0)
        assert cache.streams <= 13
    made = cache.made
    cache.block("goes on", starts, pcm, 0)
    assert cache.made == made, "what is in use is kept"


def test_a_vector_is_computed_once_for_all_frames_that_see_it() -> None:
    window, cache = AudioWindow(14, 2), BlockCache(features)
    pcm = np.zeros(16_000, np.float32)
    for i in range(20):
        starts = block_starts(i, window, len(pcm))
        first, end = samples_seen(starts)
        cache.block(1, starts, pcm[first:end], first)
    assert cache.made == 20
    cache.forget(1)
    cache.block(1, starts, pcm[first:end], first)
    assert cache.made == 36


def test_frames_before_and_behind_a_sound_see_padding() -> None:
    window = AudioWindow(14, 2)
    assert block_starts(-3, window) == [-1] * 16
    assert block_starts(-1, window)[-1] == 0
    assert block_starts(60, window, 16_000)[-1] == -1
    assert block_starts(100, window, 16_000) == [-1] * 16
