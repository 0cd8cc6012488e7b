# SPDX-License-Identifier: Apache-2.0
"""Writing a package: whole under its name, or nothing; what is there is not lost."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny import small_manifest

from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.writer import AvatarWriter
from lipsync_fast.errors import AvatarFormatError, LipsyncError, OutputError
from lipsync_fast.geometry import Rect

RECT = Rect(4, 4, 24, 24)


def manifest(licence: str = "") -> Manifest:
    return small_manifest((32, 32), name="made", licence=licence)


def fill(writer: AvatarWriter, frames: int = 2) -> None:
    for i in range(frames):
        writer.add_frame(np.full((32, 32, 3), 40 * i, np.uint8), RECT)
    for name in MODELS:
        writer.add_model(name, b"onnx")


def write(dest: Path, licence: str = "", overwrite: bool = False) -> Path:
    with AvatarWriter(dest, manifest(licence), overwrite=overwrite) as writer:
        fill(writer)
        return writer.finish()


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def licence_of(path: Path) -> str:
    with AvatarPackage.open(path) as package:
        package.verify()
        return package.manifest.licence


def interrupted(writer: AvatarWriter) -> None:
    fill(writer)
    raise KeyboardInterrupt


def not_finished(writer: AvatarWriter) -> None:
    fill(writer)


def wrong_size(writer: AvatarWriter) -> None:
    fill(writer)
    writer.add_frame(np.zeros((32, 33, 3), np.uint8), RECT)


def crop_outside(writer: AvatarWriter) -> None:
    fill(writer)
    writer.add_frame(np.zeros((32, 32, 3), np.uint8), Rect(4, 4, 29, 24))


def mask_of_another_size(writer: AvatarWriter) -> None:
    writer.add_frame(np.zeros((32, 32, 3), np.uint8), RECT, np.ones((24, 23), np.bool_))


def no_frames(writer: AvatarWriter) -> None:
    fill(writer, 0)
    writer.finish()


def no_decoder(writer: AvatarWriter) -> None:
    writer.add_frame(np.zeros((32, 32, 3), np.uint8), RECT)
    for name in ("audio_encoder", "image"):
        writer.add_model(name, b"onnx")
    writer.finish()


def another_model(writer: AvatarWriter) -> None:
    writer.add_model("../../evil", b"onnx")


def disk_full(writer: AvatarWriter) -> None:
    fill(writer)
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("ending", ["", ".lsa"])
@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (interrupted, KeyboardInterrupt, "^$"),
        (wrong_size, AvatarFormatError, "frame 2"),
        (crop_outside, AvatarFormatError, "frame 2.*leaves the frame"),
        (mask_of_another_size, AvatarFormatError, "frame 0.*mask"),
        (no_frames, AvatarFormatError, "at least one frame"),
        (no_decoder, AvatarFormatError, "decoder"),
        (another_model, AvatarFormatError, "audio_encoder, image, decoder"),
        (disk_full, OutputError, "no space left"),
    ],
)
@pytest.mark.parametrize("there", [False, True], ids=["new", "replacing"])
def test_a_failure_half_way_changes_nothing(
    tmp_path: Path,
    ending: str,
    step: Callable[[AvatarWriter], None],
    error: type[BaseException],
    words: str,
    there: bool,
) -> None:
    dest = tmp_path / f"made{ending}"
    if there:
        write(dest, "the first")
    with (
        pytest.raises(error, match=words),
        AvatarWriter(dest, manifest(), overwrite=there) as writer,
    ):
        step(writer)
    if there:
        assert licence_of(dest) == "the first"
        assert left(tmp_path) == [dest.name]
    else:
        assert left(tmp_path) == []


def test_without_finish_there_is_no_package(tmp_path: Path) -> None:
    with AvatarWriter(tmp_path / "made", manifest()) as writer:
        not_finished(writer)
    assert left(tmp_path) == []


@pytest.mark.parametrize("ending", ["", ".lsa"])
def test_what_is_there_is_refused_or_replaced(tmp_path: Path, ending: str) -> None:
    dest = tmp_path / f"made{ending}"
    write(dest, "the first")
    with pytest.raises(OutputError, match="already exists"):
        write(dest, "the second")
    assert licence_of(dest) == "the first"
    write(dest, "the third", overwrite=True)
    assert licence_of(dest) == "the third"
    assert left(tmp_path) == [dest.name]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    dest = tmp_path / "made"
    dest.mkdir()
    (dest / "precious").write_text("x")
    with pytest.raises(OutputError, match="not an avatar package"):
        write(dest, overwrite=True)
    assert left(tmp_path) == ["made"]
    assert left(dest) == ["precious"]


def test_something_appears_meanwhile(tmp_path: Path) -> None:
    with AvatarWriter(tmp_path / "made", manifest()) as writer:
        fill(writer)
        write(tmp_path / "made", "the other")
        with pytest.raises(OutputError, match="already exists"):
            writer.finish()
    assert licence_of(tmp_path / "made") == "the other"
    assert left(tmp_path) == ["made"]


def test_a_manifest_that_could_not_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(AvatarFormatError, match="licence"):
        write(tmp_path / "made", "x" * 20_001)
    assert left(tmp_path) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LipsyncError, match=r"file.*cannot be written"):
        write(tmp_path / "file" / "made")
    assert left(tmp_path) == ["file"]
