# SPDX-License-Identifier: Apache-2.0
"""Names of files through the command line: colons, other encodings, what a terminal would obey."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from media_files import hiss, write
from sounds import render_command, tone, write_wav
from videos import demo_landmarks, demo_pictures, write_video
from videos import tone as video_tone

pytestmark = pytest.mark.slow  # commands in processes of their own
GBK = "中文".encode("gbk")
NAMES = [b"2026-11-28T12:30", GBK + b":1", b"a\nb"]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, capture_output=True, timeout=300, check=False, cwd=folder, stdin=subprocess.DEVNULL
    )


@pytest.mark.parametrize("name", NAMES)
def test_sound_and_output(tiny_avatar: Path, tmp_path: Path, name: bytes) -> None:
    plain = os.fsdecode(name)
    write_wav(tmp_path / f"{plain}.wav", tone(0.2))
    command = render_command(tiny_avatar, f"{plain}.wav", f"{plain}.mp4")
    done = run([*command, "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    summary = json.loads(done.stdout)
    assert os.fsencode(summary["path"]) == name + b".mp4"
    assert sorted(os.listdir(os.fsencode(tmp_path))) == sorted([name + b".mp4", name + b".wav"])
    with av.open(f"file:{tmp_path / plain}.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == summary["frames"]
    again = run(command, tmp_path)
    assert again.returncode == 2
    (line,) = again.stderr.decode().splitlines()
    assert line.startswith("error: ")
    assert line.endswith("exists; use --force to replace it")


def test_a_name_that_is_not_there_is_one_line(tiny_avatar: Path, tmp_path: Path) -> None:
    done = run(render_command(tiny_avatar, os.fsdecode(GBK), "o.mp4"), tmp_path)
    assert done.returncode == 2
    assert done.stderr == b"error: \\xd6\\xd0\\xce\\xc4: no such file\n"


def test_the_default_track_is_rendered_and_told(tiny_avatar: Path, tmp_path: Path) -> None:
    silence = np.zeros(24_000, np.int16)
    write(
        tmp_path / "two.mkv",
        pictures=12,
        sounds=[(silence, False), (hiss(0.5, 48_000), True)],
        audio="libopus",
    )
    done = run([*render_command(tiny_avatar, "two.mkv", "o.mp4"), "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    (warning,) = json.loads(done.stdout)["warnings"]
    assert "number 2 is used" in warning
    with av.open(str(tmp_path / "o.mp4")) as container:
        pcm = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert np.abs(pcm).max() > 0.1, "the video has that track, too"


@pytest.mark.parametrize("name", [b"2026-11-28T12:30:05", GBK])
def test_a_video_and_its_sound(tmp_path: Path, name: bytes) -> None:
    plain = os.fsdecode(name)
    made = write_video(tmp_path / "v.mkv", demo_pictures(10), sound=video_tone(10))
    made.rename(tmp_path / f"{plain}.mkv")
    np.save(tmp_path / "points.npy", demo_landmarks(10))
    command = [sys.executable, "-m", "lipsync_fast", "avatar", "prepare", f"{plain}.mkv"]
    options = ["--name", "x", "--landmarks", "points.npy", "--consent", "c", "--licence", "l"]
    done = run([*command, *options, "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    (one,) = json.loads(done.stdout)["prepared"]
    assert os.fsencode(one["video"]) == name + b".mkv"
    assert one["sound"]
    again = run([*command, *options, "--json"], tmp_path)
    (one,) = json.loads(again.stdout)["prepared"]
    assert one["again"]


def test_a_video_whose_sound_fails_is_not_called_silent(tmp_path: Path) -> None:
    sounds = [(hiss(0.4, 48_000), True)]
    path = write(tmp_path / "v.mkv", pictures=10, sounds=sounds, audio="flac", size=(320, 180))
    data = path.read_bytes()
    path.write_bytes(data[:500] + data[500:].replace(b"\xff\xf8", b"\0\0"))
    np.save(tmp_path / "points.npy", demo_landmarks(10))
    command = [sys.executable, "-m", "lipsync_fast", "avatar", "prepare", "v.mkv"]
    options = ["--landmarks", "points.npy", "--consent", "c", "--licence", "l", "--json"]
    done = run([*command, *options], tmp_path)
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["prepared"]
    assert not one["sound"]
    assert any("the video's sound cannot be used (" in warning for warning in one["warnings"])
    assert not any("has no sound" in warning for warning in one["warnings"])
