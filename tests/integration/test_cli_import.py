# SPDX-License-Identifier: Apache-2.0
"""From a SyncTalk_2D data set to a video by the command line, against the reference's frames."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden import load, synctalk_dataset
from numpy.typing import NDArray
from PIL import Image

Run = Callable[..., subprocess.CompletedProcess[str]]
WORST, ON_AVERAGE = 2, 0.1
"""Grey levels by which a frame may differ from the reference's (shared/golden/README.md)."""


def command(folder: Path) -> Run:
    """The command line in ``folder``, for a user without avatars."""
    home = {"XDG_DATA_HOME": str(folder / "home"), "LIPSYNC_FAST_AVATARS": ""}

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lipsync_fast", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            cwd=folder,
            env=os.environ | home,
        )

    return call


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and the imported avatar."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    folder = tmp_path_factory.mktemp("import")
    synctalk_dataset(folder)
    done = command(folder)(
        "avatar", "import", "dataset/golden", "--licence", "CC0-1.0", "--consent", "synthetic"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert str(imported(folder)) in done.stderr
    return folder


@pytest.fixture(scope="module")
def run(place: Path) -> Run:
    """The command line beside the data set."""
    return command(place)


def imported(folder: Path) -> Path:
    """Where the avatar goes when nothing else is said."""
    return folder / "home" / "lipsync-fast" / "avatars" / "golden"


def write_wav(path: Path, pcm: NDArray[np.int16]) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(pcm.astype("<i2").tobytes())
    return path


def shot(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_rendered_frames_agree_with_the_reference(run: Run, place: Path) -> None:
    """From cuts of the sound that hold all that the frames depend on (395 ms before, 452.5 after).

    ``--start-frame`` puts a golden frame's picture under it; those that need the same are rendered
    together. Cuts are at multiples of five frames, which are whole mel rows.
    """
    golden, pcm = load("frames"), load("audio")["pcm16k"].astype(np.int16)
    period = max(1, 2 * len(golden["frames"]) - 2)
    together: dict[int, list[tuple[int, int]]] = {}
    for k, at in enumerate(golden["feature_index"].tolist()):
        together.setdefault((k - at) % period, []).append((k, at))
    for start, group in together.items():
        begin = (group[0][1] - 10) // 5 * 5
        sound = write_wav(place / "cut.wav", pcm[640 * begin : 640 * group[-1][1] + 8_000])
        out = place / f"frames{start}"
        first = str((start + begin) % period)
        done = run("render", sound, "-o", out, "--avatar", "golden", "--start-frame", first)
        assert done.returncode == 0, done.stderr
        for k, at in group:
            found = shot(out / f"{at - begin:06d}.png").astype(int)
            wanted = golden["outputs"][k][..., ::-1].astype(int)
            difference = np.abs(found - wanted)
            assert difference.max() <= WORST
            assert difference.mean() <= ON_AVERAGE
            untouched = np.abs(golden["frames"][k][..., ::-1].astype(int) - wanted)
            assert untouched.max() > 50, "the reference's face differs from the picture"


def test_list(run: Run, place: Path) -> None:
    found = {a["name"]: a for a in json.loads(run("avatar", "list", "--json").stdout)}
    golden = found["golden"]
    assert golden["path"] == str(imported(place))
    assert golden["error"] is None
    assert (golden["width"], golden["region"]) == (32, 320)
    assert (golden["licence"], golden["consent"]) == ("CC0-1.0", "synthetic")
    line = next(x for x in run("avatar", "list").stdout.splitlines() if x.startswith("golden"))
    assert "640x480" in line
    assert "real" in line


def test_inspect_with_a_contact_sheet(run: Run, place: Path) -> None:
    count = len(load("frames")["frames"])
    done = run("avatar", "inspect", "golden", "--verify", "--contact-sheet", "sheet.png")
    assert done.returncode == 0, done.stderr
    for word in ("CC0-1.0", "640 x 480", "452.5 ms", "SyncTalk_2D", f"{count} of"):
        assert word in done.stdout
    assert "checksum" in done.stderr
    sheet = shot(place / "sheet.png")
    assert sheet.shape[1] == 320 * min(4, count)
    tile = sheet[:240, :320].astype(int)
    frame = Image.fromarray(load("frames")["frames"][0][..., ::-1].astype(np.uint8))
    small = np.asarray(frame.resize((320, 240), Image.Resampling.LANCZOS)).astype(int)
    assert np.median(np.abs(tile - small)) == 0, "the avatar's own picture"
    assert ((tile == (80, 220, 120)).all(axis=2)).sum() > 100, "its face rectangle"
    again = run("avatar", "inspect", "golden", "--contact-sheet", "sheet.png")
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_importing_again_needs_force(run: Run, place: Path) -> None:
    before = (imported(place) / "manifest.json").stat().st_ino
    done = run("avatar", "import", "dataset/golden")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "already exists" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert (imported(place) / "manifest.json").stat().st_ino == before


def test_a_wrong_line_is_one_line_of_error(run: Run, place: Path, tmp_path: Path) -> None:
    data = synctalk_copy(place, tmp_path)
    path = data / "landmarks" / "1.lms"
    lines = path.read_text().splitlines()
    lines[16] = "here"
    path.unlink()
    path.write_text("\n".join(lines))
    done = run("avatar", "import", data, "--avatars", tmp_path / "avatars")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {path}, line 17: expected \"x y\", got 'here'"]
    assert not (tmp_path / "avatars").exists()


def synctalk_copy(place: Path, folder: Path) -> Path:
    """Another data set of the same files; replace what is to differ. The weights are shared."""
    (folder / "checkpoint").symlink_to(place / "checkpoint")
    source = place / "dataset" / "golden"
    copy = shutil.copytree(source, folder / "dataset" / "golden", copy_function=os.link)
    return Path(copy)
