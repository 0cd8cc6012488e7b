# SPDX-License-Identifier: Apache-2.0
"""Any video as pictures at 25 a second, and its sound beside them."""

from __future__ import annotations

import subprocess
import sys
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from videos import tone, write_video

from lipsync_fast.errors import MediaError
from lipsync_fast.media.video import Video
from lipsync_fast.prepare.sound import write_sound


def numbered(count: int, size: tuple[int, int] = (96, 64)) -> list[NDArray[np.uint8]]:
    """Pictures whose grey level says which they are (6 levels apart, round and round)."""
    return [np.full((size[1], size[0], 3), 20 + 6 * (i % 36), np.uint8) for i in range(count)]


def numbers(video: Video, **how: object) -> list[int]:
    """Which of ``numbered`` each picture is."""
    out = []
    for picture in video.pictures(**how):  # type: ignore[arg-type]
        assert picture.rgb is not None
        out.append(round((float(picture.rgb.mean()) - 20) / 6) % 36)
    return out


@pytest.mark.parametrize("rate", [10, 15, 24, 25, 30, 50, 60, Fraction(30_000, 1_001)])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_any_rate_becomes_25_by_the_nearest_time(tmp_path: Path, rate: int, ending: str) -> None:
    frames = round(rate * 1.2)
    with Video(write_video(tmp_path / f"v.{ending}", numbered(frames), rate=rate)) as video:
        found = numbers(video)
        assert video.warnings == []
    assert len(found) == pytest.approx(frames / rate * 25, abs=1)
    for i, number in enumerate(found):
        apart = min(abs(i / 25 - k / rate) for k in range(frames))
        mine = min(abs(i / 25 - k / rate) for k in range(frames) if k % 36 == number)
        assert mine <= apart + 0.0011  # Matroska's times are whole milliseconds


def test_a_rate_that_varies_becomes_25_by_the_nearest_time(tmp_path: Path) -> None:
    """As phones film in the dark: 8 to 40 ms, then 100 ms between two pictures."""
    steps = np.random.default_rng(2).integers(8, 40, 20).tolist() + [100] * 5
    times = np.cumsum([0, *steps]).tolist()
    with av.open(str(tmp_path / "v.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(numbered(len(times)), times, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with Video(tmp_path / "v.mkv") as video:
        found = numbers(video)
    wanted = [int(np.argmin([abs(40 * i - time) for time in times])) for i in range(len(found))]
    assert found == wanted
    assert len(found) == pytest.approx(times[-1] / 40, abs=3)


def test_25_stays_frame_for_frame(tmp_path: Path) -> None:
    with Video(write_video(tmp_path / "v.mp4", numbered(36))) as video:
        assert numbers(video) == list(range(36))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    """In a process of its own: 300 frames of 640 x 480 take little more than 60 of them."""
    picture = np.random.default_rng(1).integers(0, 255, (480, 640, 3), np.uint8)
    path = write_video(tmp_path / "v.mp4", [np.roll(picture, i) for i in range(300)])
    measure = (
        "import resource, sys; from pathlib import Path; from lipsync_fast.media.video import *\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "for p in Video(Path(sys.argv[1])).pictures():\n"
        "    if p.index == 60: early = most()\n"
        "print(most() - early)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", measure, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 30  # MB; all frames as they are decoded would be 110


def test_start_limit_and_frames_passed_over(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", numbered(36))
    with Video(path) as video:
        assert numbers(video, start=Fraction(2, 5), limit=10) == list(range(10, 20))
        assert video.warnings == ["only its first 0.4 s are used"]
    with Video(path) as video:
        pictures = list(video.pictures(skip=30))
        assert [p.index for p in pictures] == list(range(36))
        assert [p.rgb is None for p in pictures] == [True] * 30 + [False] * 6
    with Video(path) as video, pytest.raises(MediaError, match="is over before 5 s"):
        numbers(video, start=Fraction(5))


turning = pytest.mark.skipif(
    not hasattr(av.VideoCodecContext, "set_display_rotation"),
    reason="this PyAV cannot write a video that is to be turned (it reads them)",
)


@turning
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_turned_as_the_file_asks_for(tmp_path: Path, degrees: int) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:32, :48] = (200, 30, 30)
    picture[32:, :48] = (30, 200, 30)
    picture[:32, 48:] = (30, 30, 200)
    path = write_video(
        tmp_path / "v.mp4",
        [picture] * 3,
        change=lambda stream: stream.set_display_rotation(degrees) if degrees else None,
    )
    with Video(path) as video:
        found = next(iter(video.pictures())).rgb
        assert video.rotation == degrees
    assert found is not None
    expected = np.rot90(picture, degrees // 90).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 6


@turning
def test_mirrored_as_the_file_asks_for(tmp_path: Path) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48] = 200
    matrix = [-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30]
    path = write_video(
        tmp_path / "v.mp4",
        [picture] * 3,
        change=lambda stream: stream.set_display_matrix(matrix),
    )
    with Video(path) as video:
        found = next(iter(video.pictures())).rgb
    assert found is not None
    assert found[:, 52:].mean() > 180
    assert found[:, :44].mean() < 20


def test_pixels_that_are_not_square_are_made_so(tmp_path: Path) -> None:
    def wide(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    with Video(write_video(tmp_path / "v.mkv", numbered(3), change=wide)) as video:
        found = next(iter(video.pictures())).rgb
    assert found is not None
    assert found.shape == (64, 128, 3)


@pytest.mark.parametrize("tag", [1, 5])
def test_colours_are_those_that_were_filmed(tmp_path: Path, tag: int) -> None:
    picture = np.full((64, 96, 3), (200, 60, 20), np.uint8)
    with Video(write_video(tmp_path / "v.mp4", [picture] * 3, tag=tag)) as video:
        found = next(iter(video.pictures())).rgb
    assert found is not None
    assert np.abs(found.mean(axis=(0, 1)) - (200, 60, 20)).max() < 4


def test_colours_of_high_definition_that_says_nothing(tmp_path: Path) -> None:
    picture = np.full((720, 64, 3), (200, 60, 20), np.uint8)
    path = write_video(tmp_path / "v.avi", [picture] * 2, codec="mpeg4", tag=1)
    with Video(path) as video:
        found = next(iter(video.pictures())).rgb
    assert found is not None
    assert np.abs(found.mean(axis=(0, 1)) - (200, 60, 20)).max() < 6


def test_what_is_no_video(tmp_path: Path) -> None:
    def refused(path: Path, words: str) -> None:
        with pytest.raises(MediaError, match=words) as caught, Video(path) as video:
            numbers(video)
        assert str(path) in str(caught.value)

    refused(tmp_path / "none.mp4", "no such file")
    refused(tmp_path, "is a folder")
    (tmp_path / "empty.mp4").touch()
    refused(tmp_path / "empty.mp4", "is empty")
    (tmp_path / "text.mp4").write_text("this is no video, whatever its name says\n" * 99)
    refused(tmp_path / "text.mp4", "cannot be read as a video")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes(bytes(32_000))
    refused(tmp_path / "sound.wav", "cannot be read as a video|holds only sound")
    with av.open(str(tmp_path / "sound.m4a"), "w") as file:
        stream = file.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(tone(4)[None, :1024], format="s16", layout="mono")
        frame.sample_rate = 16_000
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    refused(tmp_path / "sound.m4a", "holds only sound")
    whole = write_video(tmp_path / "whole.mp4", numbered(30)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.mp4", "cannot be read as a video")


def test_a_list_of_other_files_is_not_followed(tmp_path: Path) -> None:
    write_video(tmp_path / "v.ts", numbered(30))
    lists = {
        "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\nv.ts\n#EXT-X-ENDLIST\n",
        "list.ffconcat": "ffconcat version 1.0\nfile v.ts\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(MediaError, match="playlists"):
            Video(tmp_path / name)


@pytest.mark.parametrize("size", [(5000, 64), (48, 200)])
def test_sizes_that_are_not_taken(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "v.avi", numbered(2, size), codec="mjpeg", change=full_range)
    with pytest.raises(MediaError, match=f"pictures of {size[0]} x {size[1]} are not taken"):
        Video(path)


@pytest.mark.parametrize("side", [5000, 20_000, 65_535])
def test_pictures_larger_than_the_header_says(tmp_path: Path, side: int) -> None:
    """No memory is taken for them: the process may not have what they would need."""
    path = write_video(tmp_path / "v.avi", numbered(2), codec="mjpeg", change=full_range)
    data = path.read_bytes()
    sizes = b"\x08" + (64).to_bytes(2, "big") + (96).to_bytes(2, "big")  # of the JPEGs
    assert data.count(sizes) == 2
    path.write_bytes(data.replace(sizes, b"\x08" + side.to_bytes(2, "big") * 2))
    use = (
        "import resource, sys; from pathlib import Path; from lipsync_fast.media.video import *\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "try: print(len(list(Video(Path(sys.argv[1])).pictures())))\n"
        "except MediaError as error: print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", use, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(f"refused: {path}: "), done


def full_range(stream: av.VideoStream) -> None:
    stream.pix_fmt = "yuvj420p"
    stream.codec_context.color_range = 2


def test_a_file_that_ends_early_gives_what_decodes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 255, (64, 96, 3), np.uint8) for _ in range(60)]
    whole = write_video(tmp_path / "whole.mkv", noise).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    with Video(tmp_path / "cut.mkv") as video:
        found = sum(1 for _ in video.pictures())
        assert 20 < found < 40
        assert any("cut off?" in w for w in video.warnings), video.warnings


def test_a_picture_that_stands_still_is_told(tmp_path: Path) -> None:
    with Video(write_video(tmp_path / "v.mkv", numbered(3), rate=Fraction(1, 2))) as video:
        assert len(numbers(video)) > 100
        assert any("stands still" in w for w in video.warnings)


def samples(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
        return np.frombuffer(file.readframes(1 << 24), "<i2")


def test_sound_lies_beside_the_frames(tmp_path: Path) -> None:
    sound = np.random.default_rng(1).integers(-9000, 9000, 640 * 30).astype(np.int16)
    path = write_video(tmp_path / "v.mkv", numbered(30), sound=sound)
    made = tmp_path / "s.wav"
    assert write_sound(path, Fraction(0), 30, made) == []
    assert np.array_equal(samples(made), sound)
    assert write_sound(path, Fraction(2, 5), 20, made) == []  # from frame 10 on
    assert np.array_equal(samples(made), sound[6400:])
    warnings = write_sound(path, Fraction(-1, 5), 60, made)
    assert warnings is not None
    assert any("ends 1.0 s before the pictures" in w for w in warnings)
    found = samples(made)
    assert len(found) == 640 * 60
    assert not found[:3200].any()
    assert np.array_equal(found[3200 : 3200 + len(sound)], sound)


def test_sound_that_ends_in_damage_is_kept_up_to_there(tmp_path: Path) -> None:
    """As ``render`` does: what decodes is used, and a warning says so."""
    sound = np.random.default_rng(1).integers(-9000, 9000, 640 * 100).astype(np.int16)
    path = write_video(tmp_path / "v.mkv", numbered(100), sound=sound)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    made = tmp_path / "s.wav"
    warnings = write_sound(path, Fraction(0), 100, made)
    assert warnings
    found = samples(made)
    assert len(found) == len(sound)
    assert np.array_equal(found[:16_000], sound[:16_000])
    assert not found[-16_000:].any()
    assert any("before the pictures" in warning for warning in warnings)


def test_aac_is_not_late(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", numbered(50), sound=tone(50))
    made = tmp_path / "s.wav"
    assert write_sound(path, Fraction(0), 50, made) == []
    found = samples(made).astype(float)
    shifts = range(-64, 65)
    true = tone(50).astype(float)
    fits = [np.dot(found[4000 + s : 20_000 + s], true[4000:20_000]) for s in shifts]
    assert abs(shifts[int(np.argmax(fits))]) <= 1


def test_no_sound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", numbered(5))
    assert write_sound(path, Fraction(0), 5, tmp_path / "s.wav") is None
    assert not (tmp_path / "s.wav").exists()
