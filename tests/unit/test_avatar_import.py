# SPDX-License-Identifier: Apache-2.0
"""Importing SyncTalk_2D data sets: crops, parsing maps, and where the weights are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import lipsync_fast
from lipsync_fast.avatars.importing.build import import_synctalk
from lipsync_fast.avatars.importing.landmarks import crop_rectangle, read_landmarks
from lipsync_fast.avatars.importing.pictures import keep_mask, numbered_pictures
from lipsync_fast.avatars.importing.weights import find_audio_encoder, find_checkpoint
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import AvatarImportError, OutputError

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 200, 160


def landmarks(x1: float, y1: float, x2: float) -> str:
    """110 lines of which only those count that span the crop."""
    points = np.zeros((110, 2))
    points[1, 0], points[52, 1], points[31, 0] = x1, y1, x2
    return "".join(f"{x} {y}\n" for x, y in points)


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(count)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints of small networks."""
    torch = pytest.importorskip("torch", reason="the extra train is not installed")
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.unet import UNet

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save({"model_state_dict": UNet(2).state_dict()}, folder / "7.pth")
    torch.save(AudioEncoder().state_dict(), folder / "audio_visual_encoder.pth")
    return folder


def dataset(
    folder: Path, frames: list[NDArray[np.uint8]], crop: tuple[float, float, float]
) -> Path:
    for name in ("full_body_img", "landmarks"):
        (folder / name).mkdir(parents=True)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / "full_body_img" / f"{i}.png")
        (folder / "landmarks" / f"{i}.lms").write_text(landmarks(*crop))
    return folder


def imported(data: Path, weights: Path, name: str = "ann") -> Path:
    return import_synctalk(data, data.parent / "avatars", name=name, checkpoint=weights / "7.pth")


@pytest.mark.parametrize(
    ("crop", "rect"),
    [
        ((40, 30, 140), (40, 30, 140, 130)),
        ((40.9, 30.9, 140.9), (40, 30, 140, 130)),
        ((40, 100, 140), (40, 100, 140, 160)),
        ((-20, 30, 60), (0, 30, 60, 110)),
        ((150, -30, 260), (150, 0, 200, 80)),
        ((-50, -40, 400), (0, 0, 200, 160)),
        ((-0.9, 30, 99), (0, 30, 99, 129)),
    ],
)
def test_crops_are_clipped_and_render(
    tmp_path: Path,
    weights: Path,
    crop: tuple[float, float, float],
    rect: tuple[int, int, int, int],
) -> None:
    """Landmarks are truncated; a crop past the frame's edge is cut there, and still renders."""
    frames = pictures(1)
    path = imported(dataset(tmp_path / "set", frames, crop), weights)
    x1, y1, x2, y2 = rect
    with lipsync_fast.open(path, backend="cpu", threads=1) as avatar:
        assert avatar.package.rect(0).corners == rect
        assert np.array_equal(avatar.package.picture(0), frames[0])
        (shown,) = list(avatar.render(np.zeros(640, np.int16), 16_000))
    outside = np.ones((HEIGHT, WIDTH), np.bool_)
    outside[y1:y2, x1:x2] = False
    assert np.array_equal(shown.image[outside], frames[0][outside])
    assert not np.array_equal(shown.image, frames[0]), "the face is generated"


def test_parsing_maps_keep_the_original(tmp_path: Path, weights: Path) -> None:
    """Pure red and pure white pixels stay; a frame without a map changes everywhere."""
    frames = pictures(2)
    data = dataset(tmp_path / "set", frames, (40, 30, 140))
    labels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    labels[30:60, 40:140] = (255, 0, 0)
    labels[60:80, 40:140] = (255, 255, 255)
    labels[80:100, 40:140] = (0, 0, 255)
    labels[100:110, 40:140] = (254, 0, 0)
    labels[:, :20] = (255, 0, 0)
    (data / "parsing").mkdir()
    Image.fromarray(labels).save(data / "parsing" / "0.png")
    path = imported(data, weights)
    with lipsync_fast.open(path, backend="cpu", threads=1) as avatar:
        mask = avatar.package.mask(0)
        assert mask is not None
        assert mask.tolist() == [[int(y < 50)] * 100 for y in range(100)]
        assert avatar.package.mask(1) is None
        first, second = (f.image for f in avatar.render(np.zeros(1280, np.int16), 16_000))
    assert np.array_equal(first[:80], frames[0][:80])
    assert (first[80:130, 40:140] != frames[0][80:130, 40:140]).mean() > 0.8
    assert (second[30:130, 40:140] != frames[1][30:130, 40:140]).mean() > 0.8


def test_kept_colours_are_red_and_white_in_rgb() -> None:
    colours = [(255, 0, 0), (255, 255, 255), (0, 0, 255), (0, 0, 0), (255, 0, 1), (0, 255, 0)]
    assert keep_mask(np.array([colours], np.uint8)).tolist() == [[True, True] + [False] * 4]


def test_what_the_package_says(tmp_path: Path, weights: Path) -> None:
    data = dataset(tmp_path / "set", pictures(2), (40, 30, 140))
    calls: list[tuple[int, int]] = []
    path = import_synctalk(
        data,
        tmp_path / "avatars",
        checkpoint=weights / "7.pth",
        licence="mine",
        consent="given in writing",
        progress=lambda done, total: calls.append((done, total)),
    )
    assert path == tmp_path / "avatars" / "set"
    assert calls == [(1, 2), (2, 2)]
    with AvatarPackage.open(path) as package:
        package.verify()
        m = package.manifest
        assert (m.name, m.width, m.region, m.frame_count) == ("set", 2, 320, 2)
        assert (m.frame_width, m.frame_height, m.loop) == (WIDTH, HEIGHT, "pingpong")
        assert (m.licence, m.consent, m.synthetic) == ("mine", "given in writing", False)
        assert "SyncTalk_2D" in m.provenance
        source = (data / "full_body_img" / "0.png").read_bytes()
        assert bytes(package.member("pictures.bin")).startswith(source)


def test_an_avatar_of_that_name_is_kept_unless_told(tmp_path: Path, weights: Path) -> None:
    data = dataset(tmp_path / "set", pictures(1), (40, 30, 140))
    path = imported(data, weights)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(OutputError, match="already exists"):
        imported(data, weights)
    assert (path / "manifest.json").read_bytes() == before
    again = import_synctalk(
        data, path.parent, name="ann", checkpoint=weights / "7.pth", licence="new", overwrite=True
    )
    with AvatarPackage.open(again) as package:
        assert package.manifest.licence == "new"
    assert [p.name for p in path.parent.iterdir()] == ["ann"]


def test_the_highest_epoch_is_taken(tmp_path: Path) -> None:
    data = tmp_path / "dataset" / "ann"
    data.mkdir(parents=True)
    folder = tmp_path / "checkpoint" / "ann"
    with pytest.raises(AvatarImportError) as caught:
        find_checkpoint(data)
    assert str(folder) in str(caught.value)
    assert "--checkpoint" in str(caught.value)
    folder.mkdir(parents=True)
    for name in ("9.pth", "100.pth", "99.pth", "audio_encoder.pth", "101.txt", "x2.pth", "²99.pth"):
        (folder / name).touch()
    assert find_checkpoint(data) == folder / "100.pth"


def test_where_the_audio_encoder_is_looked_for(tmp_path: Path) -> None:
    data, checkpoint = tmp_path / "dataset" / "ann", tmp_path / "checkpoint" / "ann" / "9.pth"
    for folder in (data, checkpoint.parent, tmp_path / "model" / "checkpoints"):
        folder.mkdir(parents=True)
    with pytest.raises(AvatarImportError, match="--audio-encoder") as caught:
        find_audio_encoder(data, checkpoint)
    assert str(tmp_path / "model" / "checkpoints") in str(caught.value)
    for folder in (tmp_path / "model" / "checkpoints", data, checkpoint.parent):
        (folder / "audio_encoder.pth").touch()
        assert find_audio_encoder(data, checkpoint) == folder / "audio_encoder.pth"
    (checkpoint.parent / "audio_visual_encoder.pth").touch()
    assert find_audio_encoder(data, checkpoint).name == "audio_visual_encoder.pth"


def test_pictures_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(11)] + ["11.PNG", "12.jpeg"]
    for name in (*names, "x.jpg", "1.txt", ".3.jpg", "²4.jpg", "cover.png"):
        (tmp_path / name).touch()
    assert [p.name for p in numbered_pictures(tmp_path)] == names


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_landmarks_are_truncated(tmp_path: Path, end: str) -> None:
    lines = [f"{i}.9 -{i}.9" for i in range(110)]
    (tmp_path / "0.lms").write_bytes(end.join(lines).encode())
    points = read_landmarks(tmp_path / "0.lms")
    assert points.tolist() == [[i, -i] for i in range(110)]


def test_a_crop_without_room() -> None:
    points = np.zeros((110, 2), np.int64)
    for x1, y1, x2 in ((50, 50, 50), (90, 50, 40), (300, 0, 400), (0, 158, 50), (-90, 9, 5)):
        points[1, 0], points[52, 1], points[31, 0] = x1, y1, x2
        with pytest.raises(AvatarImportError, match=r"^0\.lms.*no room"):
            crop_rectangle(points, WIDTH, HEIGHT, "0.lms")
