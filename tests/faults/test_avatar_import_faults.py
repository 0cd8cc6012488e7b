# SPDX-License-Identifier: Apache-2.0
"""Data sets with a part missing or wrong: the file and line are named, nothing is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lipsync_fast.avatars.importing.build import import_synctalk
from lipsync_fast.avatars.importing.landmarks import read_landmarks
from lipsync_fast.errors import AvatarError, AvatarImportError, CheckpointError

WIDTH, HEIGHT, COUNT = 96, 80, 3


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with all its parts, at ``dataset/ann``; copy it before changing it."""
    torch = pytest.importorskip("torch", reason="the extra train is not installed")
    from lipsync_fast.models.audio_encoder import AudioEncoder
    from lipsync_fast.models.unet import UNet

    root = tmp_path_factory.mktemp("original")
    data, weights = root / "dataset" / "ann", root / "checkpoint" / "ann"
    for folder in (data / "full_body_img", data / "landmarks", data / "parsing", weights):
        folder.mkdir(parents=True)
    points = np.zeros((110, 2))
    points[1, 0], points[52, 1], points[31, 0] = 20, 10, 70
    for i in range(COUNT):
        picture = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 50 * i, np.uint8))
        picture.save(data / "full_body_img" / f"{i}.jpg")
        picture.save(data / "parsing" / f"{i}.png")
        (data / "landmarks" / f"{i}.lms").write_text("".join(f"{x} {y}\n" for x, y in points))
    torch.save(UNet(2).state_dict(), weights / "9.pth")
    torch.save(AudioEncoder().state_dict(), weights / "audio_visual_encoder.pth")
    return root


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """The data set's folder, to be damaged; the weights are shared."""
    shutil.copytree(original / "dataset", tmp_path / "dataset")
    (tmp_path / "checkpoint").symlink_to(original / "checkpoint")
    return tmp_path / "dataset" / "ann"


def refused(
    data: Path, *words: str, error: type[AvatarError] = AvatarImportError, name: str | None = None
) -> None:
    """The import fails with one line that has all ``words``, and leaves nothing."""
    avatars = data.parents[1] / "avatars"
    with pytest.raises(error) as caught:
        import_synctalk(data, avatars, name=name)
    assert type(caught.value) is error
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "object at 0x" not in message
    for word in words:
        assert word in message
    assert not avatars.exists() or list(avatars.iterdir()) == []


def test_the_data_set_is_good(data: Path) -> None:
    assert import_synctalk(data, data.parents[1] / "avatars").name == "ann"


# Landmarks


def test_landmarks_missing(data: Path) -> None:
    (data / "landmarks" / "1.lms").unlink()
    refused(data, str(data / "landmarks" / "1.lms"), "missing")


def test_no_folder_of_landmarks(data: Path) -> None:
    shutil.rmtree(data / "landmarks")
    refused(data, str(data / "landmarks" / "0.lms"), "missing")


@pytest.mark.parametrize("count", [0, 1, 68, 109, 111, 5_000])
def test_not_110_landmarks(data: Path, count: int) -> None:
    (data / "landmarks" / "2.lms").write_text("20 20\n" * count)
    refused(data, str(data / "landmarks" / "2.lms"), str(count), "expected 110")


@pytest.mark.parametrize(
    "line",
    [
        b"20",
        b"20 30 40",
        b"20,30",
        b"x y",
        b"20 3o",
        b"0x14 0x14",
        b"nan 30",
        b"20 inf",
        b"1e40 30",
        b"20 -1e300",
        b"1e7 3",
        b"\xff\xfe2\x000\x00",
        "20 ３é".encode(),
        b"20\x0030",
        b"{}",
        b"1" * 5_000,
    ],
    ids=lambda line: str(line[:20]),
)
def test_a_line_that_is_not_two_numbers(data: Path, line: bytes) -> None:
    lines = [b"20 20"] * 110
    lines[41] = line
    (data / "landmarks" / "1.lms").write_bytes(b"\n".join(lines))
    refused(data, f"{data / 'landmarks' / '1.lms'}, line 42:")


@pytest.mark.parametrize(
    "text", ["", "\0" * 99, "\n" * 200_000, "1" * 200_000, "1 1\n" * 99_999], ids=lambda t: t[:4]
)
def test_files_that_are_no_landmarks(tmp_path: Path, text: str) -> None:
    (tmp_path / "0.lms").write_text(text)
    with pytest.raises(AvatarImportError, match=r"0\.lms"):
        read_landmarks(tmp_path / "0.lms")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_as_landmarks(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.lms"
    path.write_bytes(b"1 2\n" * 60 + noise + b"\n" + b"3 4\n" * 49)
    try:
        points = read_landmarks(path)
    except AvatarImportError as error:
        said = str(error)
    else:
        assert points.shape == (110, 2)
        return
    assert f"{path}, line " in said


@pytest.mark.parametrize(
    ("x1", "y1", "x2"), [(50, 10, 50), (70, 10, 20), (500, 10, 600), (5, 78, 60)]
)
def test_a_crop_without_room(data: Path, x1: int, y1: int, x2: int) -> None:
    lines = ["0 0"] * 110
    lines[1], lines[52], lines[31] = f"{x1} 0", f"0 {y1}", f"{x2} 0"
    (data / "landmarks" / "0.lms").write_text("\n".join(lines))
    refused(data, str(data / "landmarks" / "0.lms"), "no room")


# Pictures


def test_no_folder_of_frames(data: Path) -> None:
    shutil.rmtree(data / "full_body_img")
    refused(data, str(data / "full_body_img"), "missing")


def test_no_frames(data: Path) -> None:
    for path in (data / "full_body_img").iterdir():
        path.rename(path.with_name(f"x{path.name}"))
    refused(data, str(data / "full_body_img"), "0.jpg")


@pytest.mark.parametrize("missing", [0, 1])
def test_a_frame_missing(data: Path, missing: int) -> None:
    (data / "full_body_img" / f"{missing}.jpg").unlink()
    refused(data, str(data / "full_body_img" / f"{missing}.jpg"), "missing")


def test_a_frame_far_away(data: Path) -> None:
    (data / "full_body_img" / ("9" * 200 + ".jpg")).touch()
    refused(data, str(data / "full_body_img" / "3.jpg"), "missing")


def test_a_frame_twice(data: Path) -> None:
    shutil.copy(data / "full_body_img" / "1.jpg", data / "full_body_img" / "01.jpg")
    refused(data, "frame 1", "twice")


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-150]),
    "header": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "gif": lambda path: Image.new("RGB", (WIDTH, HEIGHT)).save(path, "GIF"),
    "folder": make_folder,
    "link": make_link,
}


@pytest.mark.parametrize("case", DAMAGE)
@pytest.mark.parametrize("name", ["0.jpg", "2.jpg"])
def test_a_frame_that_cannot_be_read(data: Path, name: str, case: str) -> None:
    path = data / "full_body_img" / name
    DAMAGE[case](path)
    refused(data, str(path))


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH + 1, HEIGHT), (WIDTH, HEIGHT - 1)])
def test_a_frame_of_another_size(data: Path, size: tuple[int, int]) -> None:
    path = data / "full_body_img" / "2.jpg"
    Image.new("RGB", size).save(path)
    refused(data, str(path), f"{size[0]} x {size[1]}", f"{WIDTH} x {HEIGHT}")


@pytest.mark.parametrize(("size", "word"), [((16_400, 20), "width"), ((90, 16_400), "height")])
def test_frames_too_large(data: Path, size: tuple[int, int], word: str) -> None:
    for i in range(COUNT):
        Image.new("RGB", size).save(data / "full_body_img" / f"{i}.jpg")
    refused(data, f"frame_{word}")


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (WIDTH + 1, HEIGHT), (1, 1)])
def test_a_parsing_map_of_another_size(data: Path, size: tuple[int, int]) -> None:
    path = data / "parsing" / "1.png"
    Image.new("RGB", size).save(path)
    refused(data, str(path), f"{size[0]} x {size[1]}", f"{WIDTH} x {HEIGHT}")


@pytest.mark.parametrize("case", ["empty", "text", "header", "gif"])
def test_a_parsing_map_that_cannot_be_read(data: Path, case: str) -> None:
    path = data / "parsing" / "1.png"
    DAMAGE[case](path)
    refused(data, str(path))


@pytest.mark.parametrize("damage", [make_folder, make_link])
def test_a_parsing_map_that_is_no_file(data: Path, damage: Callable[[Path], None]) -> None:
    """It is not taken for one that was never there: the mouth would be drawn over what it keeps."""
    path = data / "parsing" / "1.png"
    damage(path)
    refused(data, str(path))


# Weights, names and places


def test_no_checkpoint(data: Path) -> None:
    (data.parents[1] / "checkpoint").unlink()
    refused(data, str(data.parents[1] / "checkpoint" / "ann"), "--checkpoint")


def test_no_audio_encoder(data: Path, original: Path) -> None:
    (data.parents[1] / "checkpoint").unlink()
    folder = data.parents[1] / "checkpoint" / "ann"
    folder.mkdir(parents=True)
    shutil.copy(original / "checkpoint" / "ann" / "9.pth", folder)
    refused(data, "audio_visual_encoder.pth", str(folder), "--audio-encoder")


def test_a_checkpoint_that_is_none(data: Path, tmp_path: Path) -> None:
    (tmp_path / "9.pth").write_text("hello")
    for path in (tmp_path / "9.pth", tmp_path / "none.pth"):
        with pytest.raises(CheckpointError, match=path.name):
            import_synctalk(data, tmp_path / "avatars", checkpoint=path)
    assert not (tmp_path / "avatars").exists()


def test_no_data_set(tmp_path: Path) -> None:
    refused(tmp_path / "dataset" / "none", "none", "no such folder")


@pytest.mark.parametrize("name", ["../ann", "a/b", "ann ann", ".ann", "x" * 65, "é", "ann\n"])
def test_names_that_cannot_be(data: Path, name: str) -> None:
    refused(data, "name", name=name)
