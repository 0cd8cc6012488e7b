# SPDX-License-Identifier: Apache-2.0
"""The detector that ships, on the demo avatar's frames: the person in them does not exist."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import PrepareError
from lipsync_fast.prepare.detectors import check_points, corners_of, open_detector
from lipsync_fast.prepare.face_nets import FaceNets, Square, square_of
from lipsync_fast.prepare.mesh_detector import SEVERAL, MeshDetector

U8, F32 = NDArray[np.uint8], NDArray[np.float32]
FACE = Square(643, 349, 300, 0.0)
"""Where the face is in the frames, more or less."""
EYES, NOSE, LIPS, CHIN = (33, 263), 1, (13, 14), 152


@pytest.fixture(scope="module")
def frames() -> list[U8]:
    """Thirty frames of 1280 x 720."""
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        jpegs = [bytes(package.frame_jpeg(i)) for i in range(30)]
    return [np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs]


@pytest.fixture(scope="module")
def meshes(frames: list[U8]) -> F32:
    """Of all frames."""
    return MeshDetector().detect(frames, 0)


def test_a_mesh_in_every_frame(meshes: F32) -> None:
    assert meshes.shape == (30, 468, 2)
    assert meshes.dtype == np.float32
    assert np.isfinite(meshes).all()
    for points in meshes:
        assert np.abs(points.mean(axis=0) - (FACE.x, FACE.y)).max() < 30
        right, left = points[list(EYES)]
        assert right[0] < points[NOSE][0] < left[0]
        upper, lower = points[list(LIPS)]
        assert right[1] < points[NOSE][1] < upper[1] <= lower[1] + 1 < points[CHIN][1]


def test_it_lies_still_where_the_head_does(meshes: F32) -> None:
    steps = np.abs(np.diff(meshes.mean(axis=1), axis=0))
    assert np.median(steps) < 0.6  # pixels; the head of the demo moves slowly


def test_followed_is_as_found_anew(frames: list[U8], meshes: F32) -> None:
    anew = MeshDetector().detect([frames[17]], 17)
    assert np.abs(anew[0] - meshes[17]).max() < 3.0
    assert np.abs(anew[0] - meshes[17]).mean() < 1.0


def test_an_interrupted_run_comes_to_the_same(frames: list[U8], meshes: F32) -> None:
    again = MeshDetector()
    again.follow(meshes[11])
    assert np.array_equal(again.detect(frames[12:], 12), meshes[12:])
    again.follow(np.full((468, 2), np.nan, np.float32))
    assert np.array_equal(again.detect(frames[:2], 0), meshes[:2])


@pytest.mark.parametrize("degrees", [-35, 20])
def test_a_head_on_one_side(frames: list[U8], meshes: F32, degrees: int) -> None:
    turned = Image.fromarray(frames[0]).rotate(degrees, Image.Resampling.BILINEAR)
    [found] = MeshDetector().detect([np.asarray(turned)], 0)
    middle, a = np.array([640, 360]), np.radians(degrees)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    wanted = (meshes[0] - middle) @ turn.T + middle
    assert np.abs(found - wanted).mean() < 4.0
    assert square_of(found).angle == pytest.approx(-a, abs=0.06)


@pytest.mark.parametrize("width", [240, 640, 3200])
def test_any_size(frames: list[U8], meshes: F32, width: int) -> None:
    scale = width / 1280
    size = width, round(720 * scale)
    small = np.asarray(Image.fromarray(frames[0]).resize(size, Image.Resampling.BICUBIC))
    [found] = MeshDetector().detect([small], 0)
    assert np.abs(found / scale - meshes[0]).mean() < 4.0


def test_a_phones_portrait(frames: list[U8], meshes: F32) -> None:
    portrait = np.ascontiguousarray(frames[0][:, 440:845])
    [found] = MeshDetector().detect([portrait], 0)
    assert np.abs(found + np.array([440, 0]) - meshes[0]).mean() < 3.0


def test_no_face() -> None:
    rng = np.random.default_rng(3)
    pictures = [
        np.zeros((360, 640, 3), np.uint8),
        np.full((64, 64, 3), 255, np.uint8),
        rng.integers(0, 255, (720, 405, 3), np.uint8),
    ]
    detector = MeshDetector()
    assert np.isnan(detector.detect(pictures, 0)).all()
    assert detector.warnings == []


def test_a_face_that_leaves_and_returns(frames: list[U8], meshes: F32) -> None:
    away = np.full_like(frames[0], 90)
    found = MeshDetector().detect([frames[0], away, away, frames[3]], 1)
    assert np.isfinite(found[[0, 3]]).all()
    assert np.isnan(found[1:3]).all()
    assert np.abs(found[3] - meshes[3]).max() < 3.0


def two(frame: U8, smaller: float) -> U8:
    """The face at the left, and a smaller one beside it."""
    face = Image.fromarray(frame).crop((440, 0, 845, 720))
    both = Image.new("RGB", (810, 720), (60, 70, 80))
    both.paste(face, (0, 0))
    other = ImageOps.mirror(face.resize((round(405 * smaller), round(720 * smaller))))
    both.paste(other, (420, 20))
    return np.asarray(both)


def test_of_two_faces_the_larger_one(frames: list[U8], meshes: F32) -> None:
    detector = MeshDetector()
    found = detector.detect([two(frame, 0.7) for frame in frames[:4]], 0)
    assert np.abs(found + np.array([440, 0]) - meshes[:4]).mean() < 3.0
    assert detector.warnings == [SEVERAL]


def test_whom_it_follows_it_goes_on_following(frames: list[U8]) -> None:
    """Though the other one comes nearer to the camera meanwhile."""
    detector = MeshDetector()
    pictures = [two(frames[0], 0.6), two(frames[1], 1.0)]
    pictures[1] = np.ascontiguousarray(pictures[1])
    found = detector.detect(pictures, 24)  # the second is one at which it looks around
    assert np.abs(found[0].mean(axis=0) - found[1].mean(axis=0)).max() < 10


def test_far_away_people_are_no_second_face(frames: list[U8]) -> None:
    detector = MeshDetector()
    detector.detect([two(frames[0], 0.3)], 0)
    assert detector.warnings == []


def test_a_square_outside_the_picture_is_no_face(frames: list[U8]) -> None:
    nets, picture = FaceNets(), Image.fromarray(frames[0])
    for square in (Square(-500, -500, 100, 0.0), Square(640, 5000, 300, 1.0)):
        _, sure = nets.mesh(picture, square)
        assert sure < 0.5


@pytest.mark.parametrize(("count", "wider"), [(468, 1.13), (478, 1.10)])
def test_the_crop_of_a_mesh(count: int, wider: float) -> None:
    """Between the ears, which lie behind points 234 and 454; from below the eyes on."""
    points = np.zeros((1, count, 2), np.float32)
    points[0, 234], points[0, 454], points[0, 195] = (100, 50), (300, 54), (195, 40)
    left, top, right = corners_of(points, None, "mesh")[0]
    assert (left, top, right) == pytest.approx((200 - 100 * wider, 40, 200 + 100 * wider))


def test_the_crop_is_the_demo_avatars(meshes: F32) -> None:
    """Its region was laid by the head's geometry: ears, and the bridge of the nose."""
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        made = package.rect(0)
    left, top, right = corners_of(meshes[:1], None, "mesh")[0]
    assert left == pytest.approx(made.x, abs=0.12 * made.width)
    assert top == pytest.approx(made.y, abs=0.12 * made.width)
    assert right == pytest.approx(made.corners[2], abs=0.12 * made.width)


def test_options() -> None:
    assert isinstance(open_detector("mesh", {"threads": "2"}), MeshDetector)
    for threads in ("0", "-1", "many", "65", "1.5", "²"):
        with pytest.raises(PrepareError, match="threads"):
            open_detector("mesh", {"threads": threads})
    with pytest.raises(PrepareError, match="colour"):
        open_detector("mesh", {"colour": "red"})


def test_numbers_of_points_are_known_before_the_first_frame() -> None:
    for count in (3, 68, 110, 468, 478):
        check_points(count, None, "x")
    with pytest.raises(PrepareError, match=r"17 landmarks; 68, 110, 468, 478 or 3"):
        check_points(17, None, "x")
    check_points(17, (1, 2, 16), "x")


def test_the_nets_say_where_they_come_from() -> None:
    notice = (Path(__file__).resolve().parents[2] / "NOTICE").read_text()
    assert "MediaPipe" in notice
    for name in ("detect_full", "detect_short", "mesh"):
        held = files("lipsync_fast").joinpath("data", "faces", f"{name}.onnx").read_bytes()
        assert len(held) < 1_300_000
        about = onnxruntime.InferenceSession(held).get_modelmeta().custom_metadata_map
        assert about["licence"] == "Apache-2.0"
        assert ".tflite" in about["source"]
