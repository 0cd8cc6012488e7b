# SPDX-License-Identifier: Apache-2.0
"""LiveTalking's kinds of avatars are told apart by what lies in them, and refused by name."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import livetalking
import numpy as np
import pytest
from PIL import Image

from lipsync_fast.avatars.importing.box_order import MUSETALK_FILES
from lipsync_fast.avatars.importing.livetalking import read
from lipsync_fast.avatars.importing.recognise import recognise
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.geometry import Rect


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A wav2lip avatar, with a file where its weights would be."""
    folder = livetalking.folder(tmp_path / "ann", livetalking.frames())
    (folder / "wav2lip.pth").touch()
    return folder


def set_boxes(data: Path, boxes: Any) -> None:
    (data / "coords.pkl").write_bytes(pickle.dumps(boxes))


def xyxy(rects: Any = livetalking.RECTS) -> list[tuple[int, int, int, int]]:
    return [(r.x, r.y, r.right, r.bottom) for r in rects]


def read_all(data: Path) -> list[Rect]:
    assert recognise(data).form.option == "livetalking"
    source = read(data.resolve(), None, None)
    source.pictures.close()
    return source.track.rects


def refused(data: Path, kind: str, *words: str) -> None:
    with pytest.raises(AvatarImportError, match=f"a LiveTalking {kind} avatar") as caught:
        read(data.resolve(), None, None)
    for word in words:
        assert word in str(caught.value)


def test_a_wav2lip_avatar_is_one(data: Path) -> None:
    assert read_all(data) == list(livetalking.RECTS)
    shutil.rmtree(data / "face_imgs")
    assert read_all(data) == list(livetalking.RECTS)


@pytest.mark.parametrize("name", MUSETALK_FILES)
def test_musetalk_by_its_files(data: Path, name: str) -> None:
    (data / name).touch()
    refused(data, "MuseTalk", f"by {name}", "not supported")
    for option in (None, "livetalking"):
        with pytest.raises(AvatarImportError, match="MuseTalk"):
            recognise(data, option).form.read(data.resolve(), None, None)


def test_the_other_order_by_the_face_pictures(data: Path) -> None:
    set_boxes(data, xyxy())
    refused(data, "MuseTalk", "by face_imgs", "(x1, y1, x2, y2), not wav2lip's (y1, y2, x1, x2)")


def test_ultralight_without_its_weights_by_order_and_size(data: Path) -> None:
    """Its boxes are x1, y1, x2, y2, and its faces have 168 pixels."""
    set_boxes(data, xyxy())
    pictures = livetalking.frames()
    for i, rect in enumerate(livetalking.RECTS):
        face = cv2.resize(pictures[i][rect.slices], (168, 168))
        Image.fromarray(face).save(data / "face_imgs" / f"{i:08d}.png")
    refused(data, "ultralight", "by face_imgs", "HuBERT")


def test_the_other_order_by_the_shape_of_faces_alone(tmp_path: Path) -> None:
    """An upright picture, no face pictures, no file of another kind: both orders are in the frame
    but for the edge, and one of them is a face."""
    folder = tmp_path / "upright"
    (folder / "full_imgs").mkdir(parents=True)
    for i in range(3):
        picture = np.full((960, 540, 3), 60 + i, np.uint8)
        Image.fromarray(picture).save(folder / "full_imgs" / f"{i:08d}.png")
    (folder / "wav2lip.pth").touch()
    set_boxes(folder, [(150 + i, 260, 390 + i, 560) for i in range(3)])
    refused(folder, "MuseTalk", "by the shape of its faces")
    set_boxes(folder, [(260, 560, 150 + i, 390 + i) for i in range(3)])
    assert read_all(folder)[0] == Rect(150, 260, 240, 300)


def test_whole_frames_where_no_face_was_found_stay_wav2lip(data: Path) -> None:
    shutil.rmtree(data / "face_imgs")
    set_boxes(data, [(0, 176, 0, 160)] * 3)
    assert read_all(data) == [Rect(0, 0, 160, 176)] * 3
