# SPDX-License-Identifier: Apache-2.0
"""From other software's avatars to a video by the command line, against the reference's frames."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import packages
import pytest
from forking import Forked
from golden import load, synctalk_dataset
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.geometry import Rect

Run = Callable[..., subprocess.CompletedProcess[str]]
WORST, ON_AVERAGE = 2, 0.1
"""Grey levels by which a frame may differ from the reference's (shared/golden/README.md)."""


def user_without_avatars(folder: Path) -> dict[str, str]:
    """The environment of somebody who works in ``folder``."""
    home = {"XDG_DATA_HOME": str(folder / "home"), "LIPSYNC_FAST_AVATARS": ""}
    return os.environ | home


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set and the avatar that a program has imported."""
    pytest.importorskip("torch", reason="the extra train is not installed")
    folder = tmp_path_factory.mktemp("import")
    synctalk_dataset(folder)
    said = ("--licence", "CC0-1.0", "--consent", "synthetic")
    extra = ("--sample", "0.2", "--report", "report.json", "-o", "import.png")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "lipsync_fast", "avatar", "import", "dataset/golden"),
            *(*said, *extra),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=user_without_avatars(folder),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert str(imported(folder)) in done.stderr
    assert done.stderr.startswith("dataset/golden: SyncTalk_2D (by full_body_img, landmarks)\n")
    return folder


@pytest.fixture(scope="module")
def run(place: Path, commands: Forked) -> Run:
    """The command line beside the data set."""
    return partial(commands.run, cwd=place, env=user_without_avatars(place))


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
    for group in groups():
        check(run, place, "golden", group)


Group = list[tuple[int, int]]
"""Golden frames that need the same picture first: their numbers, and which frame of the sound."""


def groups() -> list[Group]:
    """All golden frames."""
    golden = load("frames")
    period = max(1, 2 * len(golden["frames"]) - 2)
    together: dict[int, Group] = {}
    for k, at in enumerate(golden["feature_index"].tolist()):
        together.setdefault((k - at) % period, []).append((k, at))
    return list(together.values())


def check(run: Run, place: Path, name: str, group: Group) -> None:
    """Render some golden frames by the avatar ``name``, and hold them against the reference's."""
    golden, pcm = load("frames"), load("audio")["pcm16k"].astype(np.int16)
    period = max(1, 2 * len(golden["frames"]) - 2)
    begin = (group[0][1] - 10) // 5 * 5
    sound = write_wav(place / "cut.wav", pcm[640 * begin : 640 * group[-1][1] + 8_000])
    out = place / f"{name}{group[0][0]}"
    first = str((group[0][0] - group[0][1] + begin) % period)
    done = run("render", sound, "-o", out, "--avatar", name, "--start-frame", first)
    assert done.returncode == 0, done.stderr
    for k, at in group:
        found = shot(out / f"{at - begin:06d}.png").astype(int)
        wanted = golden["outputs"][k][..., ::-1].astype(int)
        difference = np.abs(found - wanted)
        assert difference.max() <= WORST
        assert difference.mean() <= ON_AVERAGE
        untouched = np.abs(golden["frames"][k][..., ::-1].astype(int) - wanted)
        assert untouched.max() > 50, "the reference's face differs from the picture"


def golden_frames() -> tuple[list[packages.Rgb], packages.Rects]:
    """The golden pictures as RGB, and the crops that their landmarks span."""
    golden = load("frames")
    rects = []
    for points in golden["landmarks"].astype(np.float32).astype(int):
        x1, y1, x2 = points[1, 0], points[52, 1], points[31, 0]
        rects.append(Rect.from_corners(int(x1), int(y1), int(x2), min(480, int(y1 + x2 - x1))))
    return [np.ascontiguousarray(p[..., ::-1]) for p in golden["frames"]], rects


def test_a_sanders_package_agrees_with_the_reference(run: Run, place: Path) -> None:
    """Its frames from a video, its rectangles from JSON, its weights from an ONNX file."""
    import torch

    from lipsync_fast.models.checkpoints import load_unet

    folder = packages.sanders(place / "sanders", *golden_frames())
    weights = place / "checkpoint" / "golden"
    with warnings.catch_warnings(action="ignore"):  # it is an older exporter, as users had it
        torch.onnx.export(
            load_unet(weights / "99.pth"),
            (torch.zeros(1, 6, 320, 320), torch.zeros(1, 32, 16, 16)),
            str(folder / "checkpoint" / "model_best.onnx"),
            input_names=["visual_input", "audio_input"],
            dynamo=False,
        )
    encoder = weights / "audio_visual_encoder.pth"
    done = run("avatar", "import", folder, "--audio-encoder", encoder, "--no-sample")
    assert done.returncode == 0, done.stderr
    assert "model_best.onnx: width 32, region 320" in done.stderr
    assert "warning" not in done.stderr.replace("mouth near", "")
    check(run, place, "sanders", groups()[0])


def test_a_default_model_package_is_the_same_avatar(run: Run, place: Path) -> None:
    """As the data set's, which agrees with the reference: all of it."""
    folder = packages.default_model(place / "older", *golden_frames())
    for name in ("99.pth", "audio_visual_encoder.pth"):
        (folder / "models" / name).symlink_to(place / "checkpoint" / "golden" / name)
    done = run("avatar", "import", folder, "--no-sample", "--quiet", "--name", "model")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    sheet = imported(place).with_name("model-import.jpg")
    assert shot(sheet).shape[1] % 320 == 0, "where it goes when nothing else is said"
    files = [
        json.loads((imported(place).with_name(name) / "manifest.json").read_text())["files"]
        for name in ("model", "golden")
    ]
    for name in ("rects.npy", "regions.npy", "frames.bin", "masks.bin", "thumbnail.jpg"):
        assert files[0].get(name) == files[1].get(name)
    models = [name for name in files[0] if name.startswith("models/")]
    assert len(models) == 3
    assert all(files[0][name] == files[1][name] for name in models)


def test_the_report(place: Path) -> None:
    """Numbers as JSON, and a sheet on which the rectangles are drawn."""
    report = json.loads((place / "report.json").read_text())
    count = len(load("frames")["frames"])
    assert (report["name"], report["form"]) == ("golden", "SyncTalk_2D")
    assert (report["frames"], report["width"], report["height"]) == (count, 640, 480)
    assert (report["network_width"], report["region"], report["lost"]) == (32, 320, [])
    assert report["checkpoint"].endswith("99.pth")
    assert (report["sample"]["seconds"], report["sample"]["frames"]) == (0.2, 5)
    assert not [w for w in report["warnings"] if "one colour" in w or "silence" in w]
    assert report["sheet"] == "import.png"
    sheet = shot(place / "import.png")
    rows = -(-(count + 4) // 4)
    assert sheet.shape == (rows * 258, 4 * 320, 3), "the frames, then the sample's"
    _, rects = golden_frames()
    for k, rect in enumerate(rects):
        tile = sheet[k // 4 * 258 :, k % 4 * 320 :][:240, :320]
        y, x = np.nonzero((tile == (80, 220, 120)).all(axis=2))
        drawn = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert np.abs(drawn - np.array(rect.corners) / 2).max() <= 1


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
    _, error = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert "already exists" in error
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
    _, error = done.stderr.splitlines()
    assert error == f"error: {path}, line 17: expected \"x y\", got 'here'"
    assert not (tmp_path / "avatars").exists()


def synctalk_copy(place: Path, folder: Path) -> Path:
    """Another data set of the same files; replace what is to differ. The weights are shared."""
    (folder / "checkpoint").symlink_to(place / "checkpoint")
    source = place / "dataset" / "golden"
    copy = shutil.copytree(source, folder / "dataset" / "golden", copy_function=os.link)
    return Path(copy)
