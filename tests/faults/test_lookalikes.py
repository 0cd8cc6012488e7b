# SPDX-License-Identifier: Apache-2.0
"""Files that bear another's name are refused with what they are, wherever they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import livetalking
import pytest

from lipsync_fast.avatars.importing.coords import read_coords
from lipsync_fast.avatars.importing.pictures import read_picture
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import LipsyncError
from lipsync_fast.media.audio import MediaSource
from lipsync_fast.media.video import Video
from lipsync_fast.prepare.landmark_files import LandmarkFiles

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4358078\n"
PAGE = b"<!doctype html><html><head><title>Sign in</title></head></html>"
LOOKS: list[tuple[str, Callable[[Path], object]]] = [
    ("a.lsa", AvatarPackage.open),
    ("0.png", read_picture),
    ("coords.pkl", lambda path: read_coords(path, path.parent.resolve())),
    ("speech.wav", MediaSource),
    ("me.mp4", Video),
    ("points.npy", lambda path: LandmarkFiles(path)),
]


@pytest.mark.parametrize(("data", "words"), [(POINTER, "Git LFS pointer"), (PAGE, "web page")])
@pytest.mark.parametrize(("name", "look"), LOOKS)
def test_pointers_and_pages(
    tmp_path: Path, name: str, look: Callable[[Path], object], data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LipsyncError, match=f"it is a {words}") as caught:
        look(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert len(str(caught.value).splitlines()) == 1


def test_an_onnx_file_that_is_none(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the extra train is not installed")
    from lipsync_fast.models.onnx_weights import load_unet_onnx

    for data, words in ((POINTER, "Git LFS pointer"), (b"PK\x05\x06" + bytes(18), "ONNX model")):
        (tmp_path / "model.onnx").write_bytes(data)
        with pytest.raises(LipsyncError, match=words):
            load_unet_onnx(tmp_path / "model.onnx")


def test_a_picture_among_an_avatars_frames(tmp_path: Path) -> None:
    from lipsync_fast.avatars.importing.livetalking import read

    data = livetalking.folder(tmp_path / "ann", livetalking.frames())
    shutil.copy(data / "coords.pkl", data / "wav2lip.pth")
    (data / "full_imgs" / "00000000.png").write_bytes(POINTER)
    with pytest.raises(LipsyncError, match=r"00000000.png: .*Git LFS pointer"):
        read(data.resolve(), None, None)
