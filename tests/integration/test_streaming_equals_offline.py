# SPDX-License-Identifier: Apache-2.0
"""What comes through the server is what ``render`` makes of the same sound, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import soxr
import trio
from numpy.typing import NDArray
from talking import in_trio, say, speak, speech, spoken, utterance

import lipsync_fast
from lipsync_fast.api import Avatar
from lipsync_fast.client import VideoFrame
from lipsync_fast.client.local import LocalServer


@pytest.fixture(scope="module")
def avatar() -> Iterator[Avatar]:
    with lipsync_fast.open("demo", backend="cpu") as avatar:
        yield avatar


def as_sent(rate: int, form: str, channels: int) -> NDArray[np.generic]:
    """Half a second of speech in a format."""
    pcm = soxr.resample(speech(0.5).astype(np.float32) / 32768, 16_000, rate)
    if channels == 2:
        pcm = np.stack([pcm, np.roll(pcm, rate // 50) * 0.5], axis=1)
    if form == "f32le":
        return pcm.astype("<f4")
    return np.clip(np.rint(pcm * 32768), -32768, 32767).astype("<i2")


def pieces(data: bytes, seed: int) -> list[bytes]:
    """Cut anywhere, also within samples."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(data), 12)).tolist()
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize(
    ("rate", "form", "channels"),
    [
        (8_000, "s16le", 1),
        (16_000, "s16le", 1),
        (16_000, "f32le", 1),
        (24_000, "s16le", 2),
        (44_100, "f32le", 2),
        (44_100, "s16le", 1),
        (48_000, "s16le", 1),
        (192_000, "f32le", 2),
    ],
)
def test_burst_equals_render(
    server: LocalServer, avatar: Avatar, rate: int, form: str, channels: int
) -> None:
    pcm = as_sent(rate, form, channels)
    got: list[VideoFrame] = []

    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(
            server.url, sample_rate=rate, format=form, channels=channels, pace="burst"
        ) as session:
            for piece in pieces(pcm.tobytes(), rate + channels):
                await session.send(piece)
            await session.end_utterance()
            ended, events = await utterance(session, 1)
            got.extend(spoken(events, 1))
            assert (ended.frames, ended.dropped) == (len(got), 0)

    stream()
    wanted = list(avatar.render(pcm, rate))
    assert len(got) == len(wanted) >= 12
    assert [f.avatar_frame for f in got] == [w.avatar_frame for w in wanted]
    assert [f.pts for f in got] == [w.pts for w in wanted]
    assert [f.jpeg for f in got] == [w.jpeg for w in wanted]


def test_samples_that_are_no_numbers_are_silence(server: LocalServer, avatar: Avatar) -> None:
    pcm = as_sent(16_000, "f32le", 1).astype(np.float32)
    silent = pcm.copy()
    silent[3000:3400] = 0
    pcm[3000:3400:3], pcm[3001:3400:3], pcm[3002:3400:3] = np.nan, np.inf, -np.inf
    got: list[VideoFrame] = []

    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(server.url, format="f32le", pace="burst") as session:
            await session.send(pcm.tobytes())
            await session.end_utterance()
            _, events = await utterance(session, 1)
            got.extend(spoken(events))

    stream()
    assert [f.jpeg for f in got] == [w.jpeg for w in avatar.render(silent, 16_000)]


def test_sessions_at_once_do_not_change_each_other(server: LocalServer, avatar: Avatar) -> None:
    """Frames of several sessions share batches, caches and buffers."""
    sounds = [speech(0.8, start_s=0.7 * k) for k in range(4)]
    got: dict[int, list[VideoFrame]] = {}

    @in_trio
    async def stream() -> None:
        async def one(number: int) -> None:
            async with lipsync_fast.connect(server.url, pace="burst") as session:
                await say(session, sounds[number])
                _, events = await utterance(session, 1)
                got[number] = spoken(events)

        async with trio.open_nursery() as nursery:
            for number in range(len(sounds)):
                nursery.start_soon(one, number)

    stream()
    for number, sound in enumerate(sounds):
        assert [f.jpeg for f in got[number]] == [w.jpeg for w in avatar.render(sound, 16_000)]


def test_utterances_of_a_burst_go_on_in_the_avatar_s_loop(
    server: LocalServer, avatar: Avatar
) -> None:
    first, second = speech(0.4), speech(0.6, start_s=3)
    got: list[VideoFrame] = []

    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(server.url, pace="burst") as session:
            await say(session, first)
            await say(session, second)
            _, events = await utterance(session, 2)
            got.extend(spoken(events))

    stream()
    begun = [f.jpeg for f in got if f.utterance == 1]
    rest = [f.jpeg for f in got if f.utterance == 2]
    assert begun == [w.jpeg for w in avatar.render(first, 16_000)]
    assert rest == [w.jpeg for w in avatar.render(second, 16_000, start_frame=len(begun))]


@pytest.mark.alone
@pytest.mark.clock
def test_live_frames_are_render_s_over_the_same_pictures(
    server: LocalServer, avatar: Avatar
) -> None:
    """Sound in pieces of 20 ms on the clock, with the avatar's loop under way."""
    sound = speech(1.0)
    got: list[VideoFrame] = []

    @in_trio
    async def stream() -> None:
        async with lipsync_fast.connect(server.url) as session:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak, session, sound)
                _, events = await utterance(session, 1)
            got[:] = spoken(events)

    fresh: list[tuple[int, VideoFrame]] = []
    for _ in range(4):  # a slow machine is in time once it has seen the avatar's pictures
        stream()
        assert len(got) == 25
        fresh = [(k, frame) for k, frame in enumerate(got) if not frame.repeated]
        if len(fresh) > 12:
            break
    assert len(fresh) > 12, "too many frames were late to say anything"
    start = next(
        s
        for s in range(2 * avatar.manifest.frame_count)
        if all(avatar.manifest.avatar_frame(k, s) == frame.avatar_frame for k, frame in fresh)
    )
    wanted = list(avatar.render(sound, 16_000, start_frame=start))
    assert [frame.jpeg for _, frame in fresh] == [wanted[k].jpeg for k, _ in fresh]
