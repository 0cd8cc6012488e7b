# SPDX-License-Identifier: Apache-2.0
"""``avatar prepare`` killed, interrupted, out of space: what is there is whole, and more comes."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from videos import demo_landmarks, demo_pictures, tone, write_video

FRAMES = 170
SLOW = """
import os, time
import numpy as np

class Slow:
    '''Counts the frames that it is asked for, and takes its time.'''

    def __init__(self, points, pause="0.002"):
        self.points, self.pause = np.load(points), float(pause)

    def detect(self, pictures, first):
        time.sleep(self.pause * len(pictures))
        with open("asked.txt", "a") as file:
            file.write(f"{first} {len(pictures)} {os.getpid()}\\n")
        return self.points[first : first + len(pictures)]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two videos and a slow detector."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "slow.py").write_text(SLOW)
    write_video(folder / "a.mkv", demo_pictures(FRAMES), sound=tone(FRAMES))
    write_video(folder / "b.mp4", demo_pictures(FRAMES, 40), rate=30)
    np.save(folder / "points.npy", demo_landmarks(2 * FRAMES))
    return folder


def command(out: str, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "lipsync_fast", "avatar", "prepare", "a.mkv", "b.mp4"),
        *("--out", out, "--detector", "slow:Slow", "--detector-option", "points=points.npy"),
        *("--consent", "nobody", "--licence", "CC0-1.0", "--stated-by", "a test", *more),
    ]


def start(place: Path, out: str, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(out, *more),
        cwd=place,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts the tests in the background has them ignore it, and so their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def whole(place: Path, out: str) -> dict[str, str]:
    """Hashes of all files."""
    return {
        str(path.relative_to(place / out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((place / out).rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def uninterrupted(place: Path) -> dict[str, str]:
    process = start(place, "whole")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    (place / "asked.txt").unlink()
    return whole(place, "whole")


def parts(place: Path, out: str) -> list[str]:
    while True:
        try:
            return sorted(p.name for p in (place / out).glob(".*.preparing/*.part"))
        except FileNotFoundError:  # a video was finished while its folder was looked at
            continue


def wait_for_parts(place: Path, out: str, more_than: int, process: subprocess.Popen[str]) -> None:
    """Until there are so many more parts than there were."""
    while len(parts(place, out)) <= more_than and process.poll() is None:
        time.sleep(0.005)


def test_killed_at_random_points(place: Path, uninterrupted: dict[str, str]) -> None:
    chance = random.Random(7)
    kills = 0
    while True:
        process = start(place, "killed")
        wait_for_parts(place, "killed", len(parts(place, "killed")), process)
        time.sleep(chance.uniform(0, 0.15))
        if process.poll() is not None or kills == 12:
            break
        if chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()  # its workers notice
        process.communicate()
        kills += 1
        assert all(
            not p.name.startswith(".") or "preparing" in p.name
            for p in (place / "killed").iterdir()
        )
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert kills >= 2
    assert whole(place, "killed") == uninterrupted
    asked = [
        tuple(map(int, line.split())) for line in (place / "asked.txt").read_text().splitlines()
    ]
    again = sum(count for _, count, _ in asked) - 2 * FRAMES
    assert again <= 2 * 50 * kills  # a part of each video at most


def test_a_worker_that_is_killed_takes_only_its_own_video(
    place: Path, uninterrupted: dict[str, str]
) -> None:
    (place / "asked.txt").unlink(missing_ok=True)
    process = start(place, "one", "--workers", "1", "--detector-option", "pause=0.008")
    while not (place / "asked.txt").exists() or not (place / "asked.txt").read_text().strip():
        time.sleep(0.01)
    os.kill(int((place / "asked.txt").read_text().split()[2]), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "failed: a: its process was killed (SIGKILL)" in said
    assert "1 prepared, 1 failed" in said
    assert (place / "one" / "b" / "prepared.json").is_file()
    assert not (place / "one" / "a").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(place: Path, number: int, uninterrupted: dict[str, str]) -> None:
    out = f"stopped{number}"
    process = start(place, out)
    wait_for_parts(place, out, 0, process)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert "Traceback" not in said
    assert all(p.name.startswith(".") for p in (place / out).iterdir())
    process = start(place, out)
    process.communicate(timeout=120)
    assert whole(place, out) == uninterrupted


def test_no_space_left(place: Path, uninterrupted: dict[str, str]) -> None:
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        command("small"),
        cwd=place,
        env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        preexec_fn=limited,
    )
    assert done.returncode == 2
    assert done.stderr.count("the file would be larger than allowed") == 2
    assert "Traceback" not in done.stderr
    assert all(p.name.startswith(".") for p in (place / "small").iterdir())
    assert not list((place / "small").rglob("*.new"))
    process = start(place, "small")
    process.communicate(timeout=120)
    assert whole(place, "small") == uninterrupted


def test_two_at_the_same_video(place: Path, uninterrupted: dict[str, str]) -> None:
    first = start(place, "twice", "--detector-option", "pause=0.1")
    while not list((place / "twice").glob(".*.preparing/state.json")) and first.poll() is None:
        time.sleep(0.005)
    second = start(place, "twice", "--detector-option", "pause=0.1")
    _, said = second.communicate(timeout=120)
    assert second.returncode == 2
    assert "another process is preparing this video now" in said
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
