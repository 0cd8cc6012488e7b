# SPDX-License-Identifier: Apache-2.0
"""What a file claims, held against what it holds: lengths, tracks, names."""

from __future__ import annotations

import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from media_files import hiss, raw_of_two_rates, wav, write
from numpy.typing import NDArray

from lipsync_fast.errors import MediaError, NoSoundError
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.media.claims import missing_bytes, understated
from lipsync_fast.media.video import Video
from lipsync_fast.prepare.sound import write_sound

SOUND = hiss(2.0)
DATA = SOUND.tobytes()


def heard(path: Path) -> tuple[NDArray[np.float32], list[str], float | None]:
    """All of a file's sound, the warnings, and the seconds that were expected."""
    with MediaSource(path) as source:
        expected = source.seconds
        return np.concatenate(list(source)), source.warnings, expected


def whole(path: Path, seconds: float) -> None:
    """All is there, nobody is told otherwise, and so much was expected."""
    pcm, warnings, expected = heard(path)
    assert warnings == []
    assert len(pcm) / 16_000 == pytest.approx(seconds, abs=0.1)
    assert expected == pytest.approx(seconds, abs=0.1)


# ---------------------------------------------------------------- headers of WAV files

PLACEHOLDERS = [0, 0xFFFF_FFFF, 0xFFFF_FFFF - 36, 0x7FFF_FFFF, 0x7FFF_FFFF - 36, 0x8000_0000]
PLACEHOLDERS += [2_000_000_000, 0x7FFF_F000, 0xFFFF_F000]


@pytest.mark.parametrize("claimed", PLACEHOLDERS)
def test_a_placeholder_in_a_wav_header(tmp_path: Path, claimed: int) -> None:
    (tmp_path / "p.wav").write_bytes(wav(DATA, claimed=claimed))
    whole(tmp_path / "p.wav", 2.0)


@pytest.mark.parametrize("riff", [0, 0xFFFF_FFFF, 64_036, 10**6])
def test_the_length_of_the_whole_says_nothing_of_the_sound(tmp_path: Path, riff: int) -> None:
    (tmp_path / "p.wav").write_bytes(wav(DATA, claimed=len(DATA), riff=riff))
    whole(tmp_path / "p.wav", 2.0)


@pytest.mark.parametrize("claimed", [2, 1001, 32_000, 63_000])
def test_a_wav_that_holds_more_than_it_claims_loses_nothing(tmp_path: Path, claimed: int) -> None:
    (tmp_path / "p.wav").write_bytes(wav(DATA, claimed=claimed))
    assert understated(tmp_path / "p.wav") is not None
    whole(tmp_path / "p.wav", 2.0)
    pcm, _, _ = heard(tmp_path / "p.wav")
    assert np.array_equal(np.rint(pcm * 32768).astype(np.int16), SOUND)


@pytest.mark.parametrize(
    "after",
    [
        b"LIST" + (26).to_bytes(4, "little") + b"INFOISFT\x0e\0\0\0Lavf60.16.100\0",
        b"id3 " + (100).to_bytes(4, "little") + b"ID3" + bytes(97),
        b"TAG" + bytes(125),
        b"ID3\x04" + bytes(200),
        bytes(512),
        b"\x01\x02",
    ],
)
def test_other_parts_behind_the_sound_are_no_sound(tmp_path: Path, after: bytes) -> None:
    (tmp_path / "p.wav").write_bytes(wav(DATA, claimed=len(DATA), after=after))
    assert understated(tmp_path / "p.wav") is None
    whole(tmp_path / "p.wav", 2.0)


@pytest.mark.parametrize("missing", [0, 44, 65, 20_000])
def test_a_wav_that_is_cut_off_says_by_how_much(tmp_path: Path, missing: int) -> None:
    (tmp_path / "p.wav").write_bytes(wav(DATA[: len(DATA) - missing], claimed=len(DATA)))
    _, warnings, expected = heard(tmp_path / "p.wav")
    assert expected == pytest.approx(2 - missing / 32_000, abs=0.1)
    if missing < 65:
        assert warnings == []
    else:
        (warning,) = warnings
        assert f"ends early: {missing} bytes" in warning


@pytest.mark.parametrize(
    ("name", "codec", "mark", "behind", "order", "size"),
    [
        ("s.aiff", "pcm_s16be", b"SSND", 4, "big", 4),
        ("s.caf", "pcm_s16le", b"data", 4, "big", 8),
        ("s.w64", "pcm_s16le", b"data\xf3\xac", 16, "little", 8),
    ],
)
def test_other_headers_that_claim_too_little(
    tmp_path: Path, name: str, codec: str, mark: bytes, behind: int, order: Any, size: int
) -> None:
    path = write(tmp_path / name, sounds=[(hiss(3, 48_000), True)], audio=codec)
    assert understated(path) is None
    before, _, _ = heard(path)
    data = bytearray(path.read_bytes())
    at = data.index(mark) + behind
    claimed = int.from_bytes(data[at : at + size], order)
    data[at : at + size] = (claimed - 192_000).to_bytes(size, order)
    path.write_bytes(data)
    whole(path, 3.0)
    assert np.array_equal(heard(path)[0], before)


# ---------------------------------------------------------------- containers and estimates


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("v.mkv", {"video": "libx264", "audio": "libopus"}),
        ("v.mka.mkv", {"video": "mpeg4", "audio": "flac"}),
        ("v.webm", {"video": "libvpx", "audio": "libopus"}),
        ("v.flv", {"video": "libx264", "audio": "aac"}),
        ("v.mp4", {"video": "libx264", "audio": "aac"}),
        ("v.mov", {"video": "mpeg4", "audio": "pcm_s16le"}),
        ("v.avi", {"video": "mpeg4", "audio": "pcm_s16le"}),
        ("v.ts", {"video": "libx264", "audio": "aac"}),
    ],
)
def test_pictures_that_outlast_the_sound(tmp_path: Path, name: str, how: dict[str, str]) -> None:
    path = write(tmp_path / name, pictures=200, sounds=[(hiss(2, 48_000), True)], **how)  # type: ignore[arg-type]
    whole(path, 2.0)


@pytest.mark.parametrize(
    ("name", "codec", "rates"),
    [("v.aac", "aac", (16_000, 192_000)), ("v.mp3", "libmp3lame", (32_000, 256_000))],
)
def test_a_rate_that_varies_without_a_table(
    tmp_path: Path, name: str, codec: str, rates: tuple[int, int]
) -> None:
    container = {"v.aac": "adts", "v.mp3": "mp3"}[name]
    whole(raw_of_two_rates(tmp_path / name, codec, container, rates), 8.05)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("s.wav", "pcm_s16le"),
        ("s.flac", "flac"),
        ("s.mp3", "libmp3lame"),
        ("s.m4a", "aac"),
        ("s.mka", "pcm_s16le"),
        ("s.webm", "libopus"),
        ("s.ogg", "libopus"),
        ("s.aiff", "pcm_s16be"),
        ("s.caf", "pcm_s16le"),
        ("s.au", "pcm_s16be"),
        ("s.w64", "pcm_s16le"),
        ("s.avi", "pcm_s16le"),
    ],
)
def test_a_file_that_is_cut_off_says_so_and_a_whole_one_does_not(
    tmp_path: Path, name: str, codec: str
) -> None:
    container = {"s.m4a": "mp4", "s.mka": "matroska"}.get(name)
    path = write(
        tmp_path / name, sounds=[(hiss(3, 48_000), True)], audio=codec, container=container
    )
    whole(path, 3.0)
    assert missing_bytes(path) == 0
    if name == "s.m4a":  # its index lies at its end
        return
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    pcm, warnings, _ = heard(path)
    assert 0.9 < len(pcm) / 16_000 < 2.2
    assert warnings, "cut off"
    assert any("early" in warning or "damaged" in warning for warning in warnings)


def test_an_flv_that_is_cut_off_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "v.flv", pictures=100, sounds=[(hiss(4, 48_000), True)])
    whole(path, 4.0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _, warnings, _ = heard(path)
    assert any("early" in warning or "damaged" in warning for warning in warnings), warnings


@pytest.mark.parametrize("name", ["v.mkv", "v.mp4", "v.flv", "v.webm"])
def test_sound_that_outlasts_the_pictures(tmp_path: Path, name: str) -> None:
    codecs = {"video": "libvpx", "audio": "libopus"} if name == "v.webm" else {}
    path = write(tmp_path / name, pictures=30, sounds=[(hiss(4, 48_000), True)], **codecs)  # type: ignore[arg-type]
    with Video(path) as video:
        assert video.seconds == pytest.approx(1.2, abs=0.1)
        assert sum(1 for _ in video.pictures()) == pytest.approx(30, abs=1)
        assert video.warnings == []


# ---------------------------------------------------------------- tracks


def two_tracks(path: Path, first: bool, second: bool) -> Path:
    """Silence, and hiss behind it; whichever is the default."""
    silence = np.zeros(48_000, np.int16)
    return write(
        path,
        pictures=25,
        sounds=[(silence, first), (hiss(1, 48_000), second)],
        audio="libopus",
    )


def test_the_default_track_is_heard_and_told(tmp_path: Path) -> None:
    pcm, warnings, _ = heard(two_tracks(tmp_path / "two.mkv", first=False, second=True))
    assert np.abs(pcm).max() > 0.1
    (warning,) = warnings
    assert "of its 2 sound tracks, number 2 is used (the file's default)" in warning
    pcm, warnings, _ = heard(two_tracks(tmp_path / "one.mkv", first=True, second=False))
    assert np.abs(pcm).max() < 0.01
    assert warnings == []


def test_the_default_track_is_prepared(tmp_path: Path) -> None:
    path = two_tracks(tmp_path / "two.mkv", first=False, second=True)
    with Video(path) as video:
        next(iter(video.pictures()))
        assert video.begins is not None
        warnings = write_sound(path, video.begins, 25, tmp_path / "s.wav")
    assert warnings is not None
    assert any("number 2 is used" in warning for warning in warnings)
    pcm, _, _ = heard(tmp_path / "s.wav")
    assert np.abs(pcm).max() > 0.1


# ---------------------------------------------------------------- names

NAMES: list[str | bytes] = [
    "2026-11-28T12:30:05",
    "http:x",
    "concat:a",
    "pipe:",
    "a%03d b",
    "中文",
    "中文".encode("gbk"),
    b"caf\xe9",
    "x\ny",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_a_name(tmp_path: Path, name: str | bytes) -> None:
    """Of sound, of a video, and of its sound, given from its own folder too."""
    plain = os.fsdecode(name)
    sound = tmp_path / f"{plain}.wav"
    sound.write_bytes(wav(DATA, claimed=len(DATA)))
    whole(sound, 2.0)
    made = write(tmp_path / "v.mkv", pictures=25, sounds=[(hiss(1, 48_000), True)])
    video = tmp_path / f"{plain}.mkv"
    shutil.move(made, video)
    with Video(video) as opened:
        assert sum(1 for _ in opened.pictures()) == 25
    assert write_sound(video, opened.begins or Fraction(0), 25, tmp_path / "s.wav") == []


def test_a_name_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b.wav").write_bytes(wav(DATA, claimed=len(DATA)))
    whole(Path("a:b.wav"), 2.0)


# ---------------------------------------------------------------- no sound, and sound that fails


def test_only_a_file_without_a_track_has_no_sound(tmp_path: Path) -> None:
    silent = write(tmp_path / "v.mkv", pictures=5)
    with pytest.raises(NoSoundError, match="holds no sound"):
        MediaSource(silent)
    assert write_sound(silent, Fraction(0), 5, tmp_path / "s.wav") is None
    with pytest.raises(MediaError, match="no such file") as caught:
        write_sound(tmp_path / "gone.mkv", Fraction(0), 5, tmp_path / "s.wav")
    assert not isinstance(caught.value, NoSoundError)


def test_sound_that_cannot_be_decoded_is_not_called_none(tmp_path: Path) -> None:
    """FLAC frames that are all damaged."""
    path = write(tmp_path / "v.mkv", pictures=25, sounds=[(hiss(1, 48_000), True)], audio="flac")
    data = bytearray(path.read_bytes())
    spoil(data, b"\xff\xf8")
    path.write_bytes(data)
    with pytest.raises(MediaError) as caught:
        write_sound(path, Fraction(0), 25, tmp_path / "s.wav")
    assert not isinstance(caught.value, NoSoundError)
    assert not (tmp_path / "s.wav").exists()


def spoil(data: bytearray, mark: bytes) -> None:
    at = data.find(mark, 500)
    while at >= 0:
        data[at : at + 2] = b"\0\0"
        at = data.find(mark, at)
