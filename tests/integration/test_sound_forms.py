# SPDX-License-Identifier: Apache-2.0
"""One sound in many forms and pieces gives one video: through the public API, real files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sounds import tone, write_media, write_wav

import lipsync_fast
from lipsync_fast.timing import SAMPLE_RATE

Images = NDArray[np.uint8]
SECONDS = 0.6


@pytest.fixture(scope="module")
def avatar() -> Iterator[lipsync_fast.Avatar]:
    """The demo avatar: a small network of random weights hardly listens."""
    with lipsync_fast.open("demo", backend="cpu") as opened:
        yield opened


def images(avatar: lipsync_fast.Avatar, audio: object, rate: int | None = None) -> Images:
    """The face squares of a whole video."""
    squares = []
    for frame in avatar.render(audio, rate):  # type: ignore[arg-type]
        x1, y1, x2, y2 = avatar.package.rect(frame.avatar_frame).corners
        squares.append(frame.image[y1:y2, x1:x2])
    return np.stack(squares)


def apart(a: Images, b: Images) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(a.astype(np.int16) - b).mean())


@pytest.fixture(scope="module")
def plain(avatar: lipsync_fast.Avatar) -> Images:
    """The video of the sound at 16 kHz, mono."""
    return images(avatar, tone(SECONDS), SAMPLE_RATE)


@pytest.fixture(scope="module")
def swing(avatar: lipsync_fast.Avatar, plain: Images) -> float:
    """How far silence's video is from it."""
    out = apart(plain, images(avatar, np.zeros_like(tone(SECONDS)), SAMPLE_RATE))
    assert out > 0.4
    return out


@pytest.mark.parametrize(
    ("rate", "layout", "channels", "codec"),
    [
        (8_000, "mono", 1, "pcm_s16le"),
        (44_100, "stereo", 2, "pcm_f32le"),
        (48_000, "5.1", 6, "pcm_s16le"),
        (48_000, "quad", 4, "pcm_s32le"),
        (192_000, "mono", 1, "pcm_s24le"),
    ],
)
def test_any_rate_layout_and_format_is_the_same_speech(
    avatar: lipsync_fast.Avatar,
    plain: Images,
    swing: float,
    tmp_path: Path,
    rate: int,
    layout: str,
    channels: int,
    codec: str,
) -> None:
    samples = tone(SECONDS, rate, channels)
    path = write_media(tmp_path / "s.wav", samples, codec, layout=layout, rate=rate)
    found = images(avatar, path)
    assert found.shape == plain.shape
    assert apart(found, plain) < 0.02 * swing


def test_what_is_no_sample_counts_as_silence(avatar: lipsync_fast.Avatar, tmp_path: Path) -> None:
    odd, mended = tone(SECONDS), tone(SECONDS)
    odd[1000:1400], mended[1000:1400] = np.nan, 0
    odd[5000:5100], mended[5000:5100] = 7, 1
    odd[6000:6100], mended[6000:6100] = -7, -1
    path = write_media(tmp_path / "s.wav", odd, "pcm_f32le")
    assert np.array_equal(images(avatar, path), images(avatar, mended, SAMPLE_RATE))


def test_a_constant_level_is_not_speech(avatar: lipsync_fast.Avatar, tmp_path: Path) -> None:
    """Away from its ends, where the level steps, the picture rests as it does in silence."""
    path = write_wav(tmp_path / "s.wav", np.full((2 * SAMPLE_RATE, 1), 0.5, np.float32))
    level, silence = (
        images(avatar, path),
        images(avatar, np.zeros(2 * SAMPLE_RATE, np.int16), SAMPLE_RATE),
    )
    middle = slice(20, 40)
    assert np.array_equal(level[middle], silence[middle])


@settings(max_examples=20, deadline=None)
@given(
    rate=st.sampled_from([8_000, SAMPLE_RATE, 44_100]),
    length=st.integers(1, 5_000),
    sizes=st.lists(st.integers(1, 4_000), max_size=40),
)
def test_pieces_of_any_size_give_the_same_frames(
    avatar: lipsync_fast.Avatar, rate: int, length: int, sizes: list[int]
) -> None:
    pcm = (np.random.default_rng(length).normal(0, 0.2, length) * 32767).astype(np.int16)
    cuts = np.cumsum([0, *sizes])
    pieces = [pcm[a:b] for a, b in zip(cuts, [*cuts[1:], length], strict=True)]
    whole, streamed = images(avatar, pcm, rate), images(avatar, iter(pieces), rate)
    assert len(whole) == -(-length * 25 // rate)
    assert np.array_equal(whole, streamed)
