# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast render`` as a user runs it: another process, real files."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import wave
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import lipsync_fast
from lipsync_fast.timing import SAMPLE_RATE

Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def run(tiny_avatar: Path, tmp_path: Path) -> Run:
    """Run the command line with the tiny avatar's folder in the environment."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "lipsync_fast", *map(str, arguments)],
            capture_output=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
            env=os.environ | {"LIPSYNC_FAST_AVATARS": str(tiny_avatar.parent)},
        )

    return call


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """1.03 seconds of noise that swells: 26 frames."""
    samples = round(1.03 * SAMPLE_RATE)
    swell = np.sin(np.arange(samples) / samples * math.pi * 6) ** 2
    pcm = np.random.default_rng(1).normal(0, 0.2, samples) * swell
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((np.clip(pcm, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def test_mp4(run: Run, speech: Path, tmp_path: Path) -> None:
    done = run("render", speech, "-o", "o.mp4", "--avatar", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["frames"] == 26
    assert summary["seconds"] == pytest.approx(1.04)
    assert (summary["path"], summary["avatar"], summary["backend"]) == ("o.mp4", "tiny", "cpu")
    assert summary["fps"] > 0
    assert summary["warnings"] == []
    with av.open(str(tmp_path / "o.mp4"), options={"export_xmp": "1"}) as container:
        assert "trainedAlgorithmicMedia" in container.metadata["xmp"]
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.frames, video.average_rate) == (26, Fraction(25))
        assert audio.rate == SAMPLE_RATE
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mp4", "speech.wav"]


def test_folder_holds_what_the_api_gives(
    run: Run, speech: Path, tmp_path: Path, tiny_avatar: Path
) -> None:
    done = run("render", speech, "-o", "frames", "--avatar", tiny_avatar, "--start-frame", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    names = sorted(p.name for p in (tmp_path / "frames").iterdir())
    assert names == [f"{i:06d}.png" for i in range(26)]
    with lipsync_fast.open(tiny_avatar) as avatar:
        frames = list(avatar.render(speech, start_frame=1))
    assert frames[0].avatar_frame == 1
    for name, frame in zip(names, frames, strict=True):
        with Image.open(tmp_path / "frames" / name) as picture:
            assert np.array_equal(np.asarray(picture), frame.image)


def test_mjpeg_on_standard_output(run: Run, speech: Path) -> None:
    done = run("render", speech, "-o", "-", "--avatar", "tiny", "--json", "--quiet")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr)["frames"] == 26, "the summary keeps out of the pictures"
    with av.open(io.BytesIO(done.stdout), format="mjpeg") as container:
        assert sum(1 for _ in container.decode(video=0)) == 26
    assert done.stdout.count(b"trainedAlgorithmicMedia") == 26


def test_quiet_says_nothing_and_plain_lines_go_to_standard_error(run: Run, speech: Path) -> None:
    done = run("render", speech, "-o", "a.mp4", "--avatar", "tiny", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = run("render", speech, "-o", "b.mp4", "--avatar", "tiny")
    assert done.returncode == 0
    assert done.stdout == b""
    assert b"26 frames" in done.stderr
    assert b"\x1b" not in done.stderr, "no terminal, no escape codes"


def test_contact_sheet(run: Run, speech: Path, tmp_path: Path) -> None:
    done = run("render", speech, "-o", "o.mp4", "--avatar", "tiny", "--contact-sheet", "s.jpg")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "s.jpg") as sheet:
        assert sheet.width > 4 * 160
        assert b"trainedAlgorithmicMedia" in sheet.info["xmp"]


def test_force_replaces(run: Run, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "o.mp4").write_bytes(b"old")
    done = run("render", speech, "-o", "o.mp4", "--avatar", "tiny", "--force")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o.mp4").stat().st_size > 1000


def test_the_sound_of_a_video_will_do(run: Run, speech: Path, tmp_path: Path) -> None:
    assert run("render", speech, "-o", "first.mp4", "--avatar", "tiny").returncode == 0
    done = run("render", "first.mp4", "-o", "second", "--avatar", "tiny", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frames"] in (26, 27, 28), "AAC fills its last block"


def test_version_and_wrong_use(run: Run) -> None:
    done = run("--version")
    assert done.stdout.decode() == f"lipsync-fast {lipsync_fast.__version__}{os.linesep}"
    for arguments in (["rendr"], ["render"], ["render", "x.wav"], ["render", "x", "-o"]):
        done = run(*arguments)
        assert done.returncode == 2
        assert b"Traceback" not in done.stderr


def test_avatar_list_and_inspect(run: Run, tmp_path: Path) -> None:
    found = {a["name"]: a for a in json.loads(run("avatar", "list", "--json").stdout)}
    assert found["tiny"]["frame_count"] == 5
    assert found["tiny"]["error"] is None
    assert b"tiny" in run("avatar", "list").stdout
    done = run("avatar", "inspect", "tiny", "--verify", "--contact-sheet", "c.png")
    assert done.returncode == 0, done.stderr
    assert b"452.5 ms" in done.stdout
    with Image.open(tmp_path / "c.png") as sheet:
        assert sheet.width >= 320


def test_doctor(run: Run) -> None:
    done = run("doctor", "--json")
    report = json.loads(done.stdout)
    results = {check["name"]: check["result"] for check in report["self_test"]}
    assert set(results.values()) == {"ok"}, report["self_test"]
    assert done.returncode == 0, done.stderr
    assert report["processor"]["cores"] >= 1
    assert "CPUExecutionProvider" in report["onnxruntime"]["providers"]
    text = run("doctor").stdout.decode()
    assert "What will be used" in text
    assert "backend cuda: " in text
    assert "Self-test" in text
