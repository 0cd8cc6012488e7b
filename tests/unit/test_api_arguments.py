# SPDX-License-Identifier: Apache-2.0
"""What ``open`` and ``render`` take, what they refuse by name, and how frames show themselves."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sounds import tone, write_wav

import lipsync_fast
from lipsync_fast.client import AudioFrame, VideoFrame
from lipsync_fast.errors import AudioFormatError, MediaError
from lipsync_fast.geometry import Rect
from lipsync_fast_client.protocol import MediaFlag

SECONDS = 0.3


@pytest.fixture(scope="module")
def avatar(tiny_avatar: Path) -> Iterator[lipsync_fast.Avatar]:
    with lipsync_fast.open(tiny_avatar, backend="cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def pcm() -> NDArray[np.int16]:
    return (tone(SECONDS) * 32767).astype("<i2")


def shown(avatar: lipsync_fast.Avatar, *args: Any, **named: Any) -> NDArray[np.uint8]:
    return np.stack([frame.image for frame in avatar.render(*args, **named)])


def test_bytes_and_pieces_of_bytes_are_16_bit_little_endian(
    avatar: lipsync_fast.Avatar, pcm: NDArray[np.int16]
) -> None:
    wanted, data = shown(avatar, pcm, 16_000), pcm.tobytes()
    odd = [data[i : i + 333] for i in range(0, len(data), 333)]  # samples are cut in two
    for form in (data, bytearray(data), memoryview(data), memoryview(pcm), odd, iter(odd)):
        assert np.array_equal(shown(avatar, form, 16_000), wanted)
    file = io.BytesIO(data)
    assert np.array_equal(shown(avatar, iter(lambda: file.read(1001), b""), 16_000), wanted)
    rendering = avatar.render([data, b"\x00"], sample_rate=16_000)
    assert len(list(rendering)) == len(wanted)
    assert rendering.warnings == ["the last byte is half a sample and was left out"]


def test_an_open_file_is_read_where_it_stands_and_stays_open(
    avatar: lipsync_fast.Avatar, pcm: NDArray[np.int16], tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "s.wav", tone(SECONDS))
    wanted = shown(avatar, path)
    with path.open("rb") as file:
        assert np.array_equal(shown(avatar, file), wanted)
        assert not file.closed
    assert np.array_equal(shown(avatar, io.BytesIO(path.read_bytes())), wanted)
    with pytest.raises(AudioFormatError, match="mode 'rb'"), path.open() as text:
        avatar.render(text)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="the open file: cannot be read as sound"):
        avatar.render(io.BytesIO(b"no sound at all" * 100))


@pytest.mark.parametrize(
    ("audio", "named", "words"),
    [
        (None, {}, "audio of type NoneType: expected the path"),
        (7, {"sample_rate": 16_000}, "audio of type int"),
        (np.float32(0), {"sample_rate": 16_000}, "audio"),
        (np.zeros(100), {}, "sample_rate is missing: PCM needs it"),
        (b"\0" * 100, {}, "sample_rate is missing: PCM needs it"),
        (np.zeros(100), {"sample_rate": "16k"}, "sample rate '16k'"),
        (np.zeros(100), {"sample_rate": 12}, "sample rate 12"),
        (np.zeros(100), {"sample_rate": 16_000, "start_frame": -1}, "start_frame -1"),
        (np.zeros(100), {"sample_rate": 16_000, "start_frame": 0.5}, "start_frame 0.5"),
        ("speech.wav", {"sample_rate": 16_000}, "sample_rate 16000: only for PCM"),
        (np.zeros(100), {"sample_rate": 16_000, "rate": 16_000}, "rate is the former name"),
    ],
)
def test_wrong_arguments_are_named(
    avatar: lipsync_fast.Avatar, audio: Any, named: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        avatar.render(audio, **named)


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ([None], "a piece is NoneType"),
        (["speech.wav"], "a piece is str"),
        ({"a": 1}, "a piece is str"),
        ([np.array(["a"])], "a piece is an array of <U1"),
        ([[[1.0], [1.0, 2.0]]], "a piece is list"),
        ([0.5], "PCM of shape"),
        ([np.zeros((4, 4, 4))], "PCM of shape"),
        ([], "0 samples"),
    ],
)
def test_wrong_pieces_are_named(avatar: lipsync_fast.Avatar, pieces: Any, words: str) -> None:
    rendering = avatar.render(pieces, 16_000)
    with pytest.raises(ValueError, match=words):
        list(rendering)


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ({"threads": 0}, "threads 0: expected 1 or more"),
        ({"threads": -2}, "threads -2"),
        ({"threads": 1.5}, "threads 1.5"),
        ({"threads": True}, "threads True"),
        ({"avatars": "avatars/"}, "avatars 'avatars/': expected a list of folders"),
        ({"avatar": None}, "avatar None"),
    ],
)
def test_what_open_refuses(named: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lipsync_fast.open(**{"avatar": "demo", **named})
    with pytest.raises(lipsync_fast.BackendError, match="backend 'gpu'"):
        lipsync_fast.open("demo", backend="gpu")


def test_the_former_name_of_sample_rate_still_works(
    avatar: lipsync_fast.Avatar, pcm: NDArray[np.int16]
) -> None:
    with pytest.warns(DeprecationWarning, match="sample_rate") as caught:
        old = shown(avatar, pcm, rate=16_000)
    assert caught[0].filename == __file__, "it points at the caller"
    assert np.array_equal(old, shown(avatar, pcm, sample_rate=16_000))


def test_samples_that_are_not_finite_are_counted_and_told(avatar: lipsync_fast.Avatar) -> None:
    odd = np.concatenate([tone(SECONDS)[:, 0], [np.nan, np.inf, -np.inf, 1e300]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for form in (odd, iter([odd])):
            rendering = avatar.render(form, 16_000)
            list(rendering)
            (told,) = rendering.warnings
            assert told == "4 samples were not finite and were treated as silence"


def test_frames_show_themselves_without_their_bytes(
    avatar: lipsync_fast.Avatar, pcm: NDArray[np.int16]
) -> None:
    frame = list(avatar.render(pcm, 16_000))[3]
    height, width = frame.image.shape[:2]
    assert repr(frame) == (
        f"RenderedFrame(index=3, pts=0.12 s, {width} x {height}, avatar_frame={frame.avatar_frame})"
    )
    assert frame._repr_jpeg_() == frame.jpeg
    assert (frame == frame, len({frame})) == (True, 1)  # compared by identity, not pixel by pixel
    assert repr(avatar) == f"Avatar({avatar.name!r}, on cpu)"
    picture = VideoFrame(
        jpeg=b"\xff\xd8" + bytes(5000),
        content="frame",
        box=Rect(0, 0, 1280, 720),
        pts_us=120_000,
        avatar_frame=7,
        utterance=1,
        sequence=9,
        flags=MediaFlag.FIRST | MediaFlag.REPEATED,
    )
    assert repr(picture) == (
        "VideoFrame(speech, pts=0.12 s, utterance=1, sequence=9, frame of 1280 x 720,"
        " avatar_frame=7, 5002 bytes, first, repeated)"
    )
    assert picture._repr_jpeg_() == picture.jpeg
    sound = AudioFrame(pcm=bytes(1280), pts_us=40_000, utterance=1, sequence=8)
    assert repr(sound) == "AudioFrame(pts=0.04 s, utterance=1, sequence=8, 1280 bytes)"
