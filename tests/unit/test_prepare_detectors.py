# SPDX-License-Identifier: Apache-2.0
"""Where landmarks come from: files of all forms, and detectors that behave in all ways."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lipsync_fast.errors import AvatarImportError, PrepareError
from lipsync_fast.prepare import landmark_files
from lipsync_fast.prepare.detectors import (
    check_spec,
    corners_of,
    found_points,
    open_detector,
)
from lipsync_fast.prepare.landmark_files import LandmarkFiles, find_landmarks

PICTURES = [np.zeros((64, 64, 3), np.uint8)] * 4
POINTS = np.random.default_rng(1).uniform(0, 60, (10, 110, 2)).astype(np.float32)


def write_lms(folder: Path, points: NDArray[np.float32]) -> Path:
    folder.mkdir()
    for i, frame in enumerate(points):
        (folder / f"{i}.lms").write_text("".join(f"{x} {y}\n" for x, y in frame))
    return folder


def test_files_of_all_forms(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", POINTS)
    np.savez_compressed(tmp_path / "b.npz", landmarks=POINTS, other=np.zeros(3))
    np.savez(tmp_path / "c.npz", POINTS.astype(np.float64))
    for path in (tmp_path / "a.npy", tmp_path / "b.npz", tmp_path / "c.npz"):
        found = LandmarkFiles(path).detect(PICTURES, 3)
        assert np.array_equal(found, POINTS[3:7])
        late = LandmarkFiles(path).detect(PICTURES, 8)
        assert np.array_equal(late[:2], POINTS[8:])
        assert np.isnan(late[2:]).all()
    files = LandmarkFiles(write_lms(tmp_path / "d", POINTS))
    assert np.array_equal(files.detect(PICTURES, 3), POINTS[3:7].astype(int))
    assert np.isnan(files.detect(PICTURES, 8)[2:]).all()


def test_the_hash_is_of_all_that_is_read(tmp_path: Path) -> None:
    folder = write_lms(tmp_path / "d", POINTS)
    before = LandmarkFiles(folder).fingerprint()
    assert LandmarkFiles(folder).fingerprint() == before
    (folder / "9.lms").write_text((folder / "8.lms").read_text())
    assert LandmarkFiles(folder).fingerprint() != before


def test_which_landmarks_are_whose(tmp_path: Path) -> None:
    write_lms(tmp_path / "anna", POINTS[:1])
    np.save(tmp_path / "ben.npy", POINTS)
    assert find_landmarks(tmp_path, "anna", alone=False) == tmp_path / "anna"
    assert find_landmarks(tmp_path, "ben", alone=False) == tmp_path / "ben.npy"
    assert find_landmarks(tmp_path / "anna", "x", alone=True) == tmp_path / "anna"
    for given, alone, words in (
        (tmp_path, False, "no landmarks of x"),
        (tmp_path / "ben.npy", False, "must lie in one folder"),
        (tmp_path / "none", True, "no such"),
    ):
        with pytest.raises(PrepareError, match=words):
            find_landmarks(given, "x", alone=alone)


def test_files_that_hold_something_else(tmp_path: Path) -> None:
    bad: dict[str, NDArray[Any]] = {
        "flat": np.zeros((10, 6)),
        "two points": np.zeros((10, 2, 2)),
        "words": np.full((3, 5, 2), "x"),
        "objects": np.full((3, 5, 2), None),
        "empty": np.zeros((0, 5, 2)),
    }
    for name, array in bad.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
        with pytest.raises(PrepareError, match=r"expected frames x points|cannot be read"):
            LandmarkFiles(tmp_path / f"{name}.npy")
    for name in ("x.npy", "x.npz", "x.txt"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(PrepareError, match=r"cannot be read|landmarks are a folder"):
            LandmarkFiles(tmp_path / name)
    (tmp_path / "none").mkdir()
    with pytest.raises(PrepareError, match="holds no landmarks"):
        LandmarkFiles(tmp_path / "none")
    write_lms(tmp_path / "lms", POINTS)
    (tmp_path / "lms" / "2.lms").write_text("1 2\n3\n")
    with pytest.raises(AvatarImportError, match=r"2\.lms, line 2"):
        LandmarkFiles(tmp_path / "lms").detect(PICTURES, 0)


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landmark_files, "MOST_BYTES", 4 << 20)
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("landmarks.npy", "w", force_zip64=True) as out,
    ):
        for _ in range(20):
            out.write(bytes(1 << 20))
    with pytest.raises(PrepareError, match="unpacks to more than 4 MiB"):
        LandmarkFiles(tmp_path / "bomb.npz")


class Fake:
    """A detector that returns what it is told to."""

    def __init__(self, make: Callable[[int], Any], corners: Any = None) -> None:
        self._make = make
        self.corners = corners

    def detect(self, pictures: Any, first: int) -> Any:
        return self._make(len(pictures))


def test_faces_that_are_not_sure_are_none() -> None:
    sure = np.full((4, 3, 3), 10.0)
    sure[1, :, 2] = 0.2
    sure[2, 0, 0] = np.inf
    sure[3, 1, 1] = np.nan
    sure[0, :, 2] = 0.9
    found = found_points(Fake(lambda n: sure), PICTURES, 0, "x")
    assert found.shape == (4, 3, 2)
    assert list(np.isnan(found).all(axis=(1, 2))) == [False, True, True, True]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: np.zeros((n - 1, 5, 2)), r"returned shape \(3, 5, 2\), expected 4 x K"),
        (lambda n: np.zeros((n, 5)), "returned shape"),
        (lambda n: np.zeros((n, 2, 2)), "returned shape"),
        (lambda n: np.zeros((n, 5, 4)), "returned shape"),
        (lambda n: "nothing", "failed at frame 7"),
        (lambda n: [1, [2]], "failed at frame 7"),
        (lambda n: 1 // 0, "failed at frame 7 .ZeroDivisionError"),
    ],
)
def test_detectors_that_misbehave(make: Callable[[int], Any], words: str) -> None:
    with pytest.raises(PrepareError, match=words):
        found_points(Fake(make), PICTURES, 7, "x")


def test_the_crop_of_each_scheme() -> None:
    points = np.random.default_rng(2).uniform(0, 99, (2, 110, 2)).astype(np.float32)
    expected = [points[0, 1, 0], points[0, 52, 1], points[0, 31, 0]]
    assert np.allclose(corners_of(points, None, "x")[0], expected)
    three = points[:, :3]
    assert np.allclose(
        corners_of(three, None, "x")[1], [three[1, 0, 0], three[1, 1, 1], three[1, 2, 0]]
    )
    assert np.allclose(
        corners_of(points[:, :9], (4, 5, 6), "x")[0],
        [points[0, 4, 0], points[0, 5, 1], points[0, 6, 0]],
    )
    with pytest.raises(PrepareError, match="9 landmarks; 68, 110, 468, 478 or 3"):
        corners_of(points[:, :9], None, "x")
    with pytest.raises(PrepareError, match="are not three of 9 points"):
        corners_of(points[:, :9], (1, 2, 9), "x")


def test_names_of_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "somebodys.py").write_text(
        "class D:\n"
        "    def __init__(self, **options): self.options = options\n"
        "def broken(): raise OSError('no model')\n"
        "constant = 3\n"
    )
    about = tmp_path / "somebodys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[lipsync_fast.detectors]\ntheirs = somebodys:D\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somebodys", raising=False)
    for spec in ("somebodys:D", "theirs"):
        made: Any = open_detector(spec, {"model": "m.bin"})
        assert made.options == {"model": "m.bin"}
    for spec, words in (
        ("nobodys", "there is no detector 'nobodys' .known: dlib, mesh, theirs"),
        ("nobodys:D", "cannot be loaded"),
        ("somebodys:E", "cannot be loaded"),
        ("somebodys:constant", "is not a function"),
        ("somebodys:broken", "cannot start .OSError: no model"),
        ("a b:c", "expected a name or module:function"),
    ):
        with pytest.raises(PrepareError, match=words):
            open_detector(spec, {})
    check_spec("somebodys:D")


def test_dlib_wants_its_terms_accepted() -> None:
    with pytest.raises(PrepareError, match="300-W images, which may be used for research only"):
        open_detector("dlib", {})
