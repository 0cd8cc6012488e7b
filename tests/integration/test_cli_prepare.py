# SPDX-License-Identifier: Apache-2.0
"""From videos to prepared folders by the command line: many at once, one of them broken."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from forking import Forked
from typer.testing import CliRunner
from videos import demo_landmarks, demo_pictures, tone, write_video

from lipsync_fast.cli.main import app
from lipsync_fast.prepare.folder import PreparedAvatar

Run = Callable[..., subprocess.CompletedProcess[str]]
STATED = ("--consent", "she exists nowhere", "--licence", "CC0-1.0")
MANY = 6
"""More than work at a time; the fifth is broken."""
FRAMES = 20

DETECTOR = """
import numpy as np

class Found:
    corners = (3, 4, 5)

    def __init__(self, points, none=""):
        self.points = np.load(points)
        if none:
            self.points[int(none):] = np.nan

    def detect(self, pictures, first):
        print("a detector may print")
        out = np.zeros((len(pictures), 6, 2), np.float32)
        out[:, 3:] = self.points[first : first + len(pictures)]
        return out
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of videos with their landmarks, and a detector."""
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "found").mkdir()
    for i in range(MANY):
        sound = tone(FRAMES) if i % 2 else None
        write_video(folder / f"v{i}.mkv", demo_pictures(FRAMES, 9 * i), sound=sound)
        np.save(folder / "found" / f"v{i}.npy", demo_landmarks(FRAMES, 9 * i))
    (folder / "v4.mkv").write_bytes((folder / "v5.mkv").read_bytes()[:300])
    (folder / "mine.py").write_text(DETECTOR)
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """``lipsync-fast avatar prepare`` beside the videos."""

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lipsync_fast", "avatar", "prepare", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=place,
            stdin=subprocess.DEVNULL,
            env=user(place),
        )

    return call


def user(place: Path) -> dict[str, str]:
    """The environment of somebody whose avatars lie beside the videos."""
    return os.environ | {"XDG_DATA_HOME": str(place / "home"), "LOGNAME": "tester"}


def videos() -> list[str]:
    return [f"v{i}.mkv" for i in range(MANY)]


def test_many_at_once_one_of_them_broken(place: Path, run: Run) -> None:
    done = run(
        *videos(), "--out", "many", "--landmarks", "found", "--json", "--workers", 4, *STATED
    )
    assert done.returncode == 2
    report = json.loads(done.stdout)
    assert [one["name"] for one in report["prepared"]] == [f"v{i}" for i in range(MANY) if i != 4]
    assert all(one["frames"] == FRAMES for one in report["prepared"])
    assert [one["name"] for one in report["failed"]] == ["v4"]
    lines = done.stderr.splitlines()
    assert f"[{MANY}/{MANY}]" in done.stderr
    assert any(line.startswith("failed: v4: v4.mkv: cannot be read as a video") for line in lines)
    assert any("5 prepared, 1 failed; 100 frames" in line for line in lines)
    assert any("warning: v2: the video has no sound" in line for line in lines)
    assert sorted(os.listdir(place / "many")) == [f"v{i}" for i in range(MANY) if i != 4]
    with PreparedAvatar.open(place / "many" / "v5") as prepared:
        prepared.verify()
        assert prepared.manifest.consent.startswith("she exists nowhere (stated by tester on ")
        assert prepared.manifest.licence == "CC0-1.0"
    again = run(*videos(), "--out", "many", "--landmarks", "found", *STATED)
    assert again.returncode == 2
    assert again.stderr.count("there already") == 5
    assert "0 frames" in again.stderr


def test_faces_are_found_without_a_word(place: Path, run: Run) -> None:
    done = run("v1.mkv", "--out", "alone", "--json", *STATED)
    assert done.returncode == 0, done.stderr
    [made] = json.loads(done.stdout)["prepared"]
    assert (made["frames"], made["points"], made["detector"]) == (FRAMES, 468, "mesh")
    assert made["bridged"] == 0
    small, restless = made["warnings"]
    assert "the face is 77 pixels wide" in small
    assert "nowhere is the mouth shut in silence" in restless
    with PreparedAvatar.open(place / "alone" / "v1") as prepared:
        prepared.verify()
    again = run("v1.mkv", "--out", "alone", "--detector", "mesh", "--json", *STATED)
    assert json.loads(again.stdout)["prepared"][0]["again"]


def test_a_detector_of_the_users_own(place: Path, run: Run) -> None:
    how = ("--detector", "mine:Found", "--detector-option", "points=found/v1.npy", *STATED)
    done = run("v1.mkv", "--out", "own", "--name", "ann", *how)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "next: lipsync-fast avatar train own/ann" in done.stderr
    with PreparedAvatar.open(place / "own" / "ann") as prepared:
        assert prepared.landmarks.shape == (FRAMES, 6, 2)
        assert prepared.manifest.detector == "mine:Found"
    # Faces that are lost half way are refused, and bridged when that is wanted.
    lost = (*how, "--detector-option", "none=15")
    done = run("v1.mkv", "--out", "own", "--name", "bob", "--bridge", 3, *lost)
    assert done.returncode == 2
    assert "no face in frames 15-19 (0.60-0.80 s)" in done.stderr
    assert "the same command goes on where it was" in done.stderr
    done = run("v1.mkv", "--out", "own", "--name", "bob", *lost)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(place / "own")) == ["ann", "bob"]
    done = run("v1.mkv", "--out", "own", "--detector", "mine:Found", *STATED)
    assert done.returncode == 2
    assert "detector mine:Found: cannot start (TypeError" in done.stderr


def test_a_whole_avatar_with_weights(place: Path, commands: Forked) -> None:
    import torch

    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.unet import UNet

    torch.manual_seed(1)
    torch.save(UNet(width=2, region=320).state_dict(), place / "7.pth")
    torch.save(AudioEncoder().state_dict(), place / "audio_encoder.pth")
    run = partial(commands.run, "avatar", "prepare", cwd=place, env=user(place))
    done = run("v1.mkv", "--landmarks", "found", "--weights", "7.pth", "--loop", "cycle", *STATED)
    assert done.returncode == 0, done.stderr
    assert "try: lipsync-fast render" in done.stderr
    made = place / "home" / "lipsync-fast" / "avatars" / "v1"
    from lipsync_fast.avatars.package import AvatarPackage

    with AvatarPackage.open(made) as package:
        package.verify()
        assert package.manifest.loop == "cycle"
        assert package.manifest.width == 2
    again = run("v1.mkv", "--landmarks", "found", "--weights", "7.pth", "--out", "2", *STATED)
    assert again.returncode == 2
    assert again.stderr == f"error: {made}: already exists; --force replaces it\n"
    assert not (place / "2").exists(), "nothing was done before that was said"


def test_what_is_refused_before_any_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)

    def refused(words: str, *arguments: str) -> None:
        done = CliRunner().invoke(app, ["avatar", "prepare", *arguments])
        assert done.exit_code == 2, done.stderr
        assert words in done.stderr
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1

    found = ("--landmarks", "found")
    (place / "other").mkdir()
    refused("--consent and --licence must be given", "v1.mkv", *found)
    refused("--licence must be given", "v1.mkv", *found, "--consent", "yes")
    refused(
        "the statement of consent is empty", "v1.mkv", *found, "--consent", " ", "--licence", "x"
    )
    refused("not from both", "v1.mkv", *found, "--detector", "mesh", *STATED)
    refused(
        "--detector-option needs --detector",
        "v1.mkv",
        *found,
        "--detector-option",
        "threads=2",
        *STATED,
    )
    refused("there is no detector 'x'", "v1.mkv", "--detector", "x", *STATED)
    refused("research only", "v1.mkv", "--detector", "dlib", *STATED)
    refused("no landmarks of v3", "v3.mkv", "v1.mkv", "--landmarks", "other", *STATED)
    (place / "other" / "v1.mp4").touch()
    refused("would both become 'v1'", "v1.mkv", "other/v1.mp4", *found, *STATED)
    refused("would both become 'v1'", "v1.mkv", "v1.mkv", *found, *STATED)
    refused("is a file; --out", "v1.mkv", *found, "--out", "mine.py", *STATED)
    refused("--name is for one video", "v1.mkv", "v2.mkv", "--name", "x", *found, *STATED)
    refused("--weights belong to one person", "v1.mkv", "v2.mkv", "--weights", "x", *found, *STATED)


def test_an_output_that_holds_something_else(place: Path, run: Run) -> None:
    (place / "full" / "v1").mkdir(parents=True)
    (place / "full" / "v1" / "letters.txt").write_text("mine")
    how = ("v1.mkv", "--out", "full", "--landmarks", "found", "--force", *STATED)
    done = run(*how)
    assert done.returncode == 2
    assert "holds something other" in done.stderr
    assert (place / "full" / "v1" / "letters.txt").read_text() == "mine"
    assert os.listdir(place / "full") == ["v1"]


def test_other_options_need_force(place: Path, run: Run) -> None:
    how = ("v3.mkv", "--out", "forced", "--landmarks", "found", "--quiet", *STATED)
    assert run(*how).returncode == 0
    done = run(*how, "--quality", 80)
    assert done.returncode == 2
    assert "with other options; --force" in done.stderr
    (place / "forced" / "v3" / "training").mkdir()
    done = run(*how, "--quality", 80, "--force")
    assert done.returncode == 2
    assert "also holds training, which would be lost" in done.stderr
    (place / "forced" / "v3" / "training").rmdir()
    done = run(*how, "--quality", 80, "--force")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert os.listdir(place / "forced") == ["v3"]
    with PreparedAvatar.open(place / "forced" / "v3") as prepared:
        assert prepared.manifest.jpeg.quality == 80


def test_asked_for_on_a_terminal(place: Path) -> None:
    """Consent and licence are asked for, and there are bars."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "lipsync_fast", "avatar", "prepare", "v3.mkv", "v5.mkv"),
            *("--out", "asked", "--landmarks", "found"),
        ],
        cwd=place,
        stdin=child,
        stdout=subprocess.PIPE,
        stderr=child,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(child)
    shown = b""
    answers = [b"she signed a form\n", b"in-house only\n", b"H. Tester\n"]
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:
            break  # the other end is closed
        if not piece:
            break
        shown += piece
        asked = shown.count(b"agree to this avatar:") + shown.count(b"may it be used:")
        asked += shown.count(b"Who states this")
        while answers and 3 - len(answers) < asked:
            os.write(parent, answers.pop(0))
    out, _ = process.communicate(timeout=120)
    os.close(parent)
    assert process.returncode == 0, shown
    assert out == b""
    assert b"videos" in shown  # the bar for all
    with PreparedAvatar.open(place / "asked" / "v5") as prepared:
        m = prepared.manifest
        assert m.consent.startswith("she signed a form (stated by H. Tester on ")
        assert m.licence == "in-house only"
