# SPDX-License-Identifier: Apache-2.0
"""The package format: what is written comes back, as a folder and as an .lsa file."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny import small_manifest

from lipsync_fast import _native
from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.manifest import FrameJpeg, Manifest
from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.storage import ALIGNMENT
from lipsync_fast.avatars.writer import AvatarWriter, pack
from lipsync_fast.errors import AvatarFormatError, AvatarNotFoundError
from lipsync_fast.geometry import Rect

Picture = NDArray[np.uint8]


@dataclass
class Source:
    """What goes into a package."""

    pictures: list[Picture]
    rects: list[Rect]
    masks: list[NDArray[np.bool_] | None]
    models: dict[str, bytes]
    manifest: Manifest


def source(width: int, height: int, count: int, seed: int, masked: bool = True) -> Source:
    """Random frames and rectangles; every second frame has a mask if ``masked``."""
    rng = np.random.default_rng(seed)
    pictures, rects, masks = [], [], []
    for i in range(count):
        pictures.append(rng.integers(0, 256, (height, width, 3), np.uint8))
        x1, x2 = (int(v) for v in np.sort(rng.choice(width + 1, 2, replace=False)))
        y1, y2 = (int(v) for v in np.sort(rng.choice(height + 1, 2, replace=False)))
        rects.append(Rect.from_corners(x1, y1, x2, y2))
        masks.append(rng.random((y2 - y1, x2 - x1)) < 0.3 if masked and i % 2 == 0 else None)
    manifest = small_manifest(
        (width, height),
        name="made",
        width=4,
        jpeg=FrameJpeg(quality=90, restart_interval=2),
        synthetic=True,
        licence="CC0-1.0",
        provenance="drawn",
        consent="nobody is shown",
    )
    return Source(pictures, rects, masks, {n: n.encode() * 9 for n in MODELS}, manifest)


def write(made: Source, dest: Path, *, pictures: bool = True, regions: bool = True) -> Path:
    """Make a package of ``made``."""
    with AvatarWriter(dest, made.manifest, keep_pictures=pictures, keep_regions=regions) as writer:
        for picture, rect, mask in zip(made.pictures, made.rects, made.masks, strict=True):
            writer.add_frame(picture, rect, mask)
        for name, data in made.models.items():
            writer.add_model(name, data)
        return writer.finish()


def check(package: AvatarPackage, made: Source, exact: bool) -> None:
    """The package holds ``made``; pixels are compared where their source files were kept."""
    package.verify()
    files = package.manifest.files
    assert package.manifest == msgspec.structs.replace(
        made.manifest, frame_count=len(made.pictures), files=files
    )
    for i, (picture, rect, mask) in enumerate(
        zip(made.pictures, made.rects, made.masks, strict=True)
    ):
        assert package.rect(i) == rect
        if exact:
            assert np.array_equal(package.picture(i), picture)
        else:
            jpeg = decode(package.frame_jpeg(i), package.frame_size, "frame")
            assert np.array_equal(package.picture(i), jpeg)
        if exact or "regions.npy" in files:
            side = package.manifest.crop
            wanted = _native.resize_cubic(picture[rect.slices], side, side)
            assert np.array_equal(package.crop(i), wanted)
        stored = package.mask(i)
        if mask is None:
            assert stored is None
        else:
            assert stored is not None
            assert np.array_equal(stored, mask)
    for name, data in made.models.items():
        assert package.model(name) == data
    decode(package.member("thumbnail.jpg"), (256, 256), "thumbnail")


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(16, 70),
    height=st.integers(16, 70),
    count=st.integers(1, 4),
    seed=st.integers(0, 1 << 31),
    masked=st.booleans(),
    pictures=st.booleans(),
    regions=st.booleans(),
    ending=st.sampled_from(["", ".lsa"]),
)
def test_round_trip(
    width: int,
    height: int,
    count: int,
    seed: int,
    masked: bool,
    pictures: bool,
    regions: bool,
    ending: str,
) -> None:
    made = source(width, height, count, seed, masked)
    with tempfile.TemporaryDirectory() as folder:
        path = write(made, Path(folder) / f"made{ending}", pictures=pictures, regions=regions)
        with AvatarPackage.open(path) as package:
            check(package, made, exact=pictures)
            if count > 1 and masked:
                assert "masks.npy" in package.manifest.files
            if not masked:
                assert "masks.npy" not in package.manifest.files


def test_frames_are_jpegs_cut_at_their_restart_markers(tmp_path: Path) -> None:
    made = source(100, 50, 2, seed=1)
    with AvatarPackage.open(write(made, tmp_path / "made")) as package:
        for i in range(2):
            jpeg, offsets = bytes(package.frame_jpeg(i)), package.frame_segments(i)
            units = -(-100 // 16) * -(-50 // 16)
            assert len(offsets) == units // 2 + 1
            for k, end in enumerate(offsets[1:-1].tolist()):
                assert jpeg[end - 2 : end] == bytes([0xFF, 0xD0 + k % 8])
            assert jpeg[int(offsets[-1]) :] == b"\xff\xd9"
            shown = decode(jpeg, (100, 50), "frame").astype(int)
            assert np.abs(shown.mean(axis=(0, 1)) - made.pictures[i].mean(axis=(0, 1))).max() < 4


def test_source_files_are_kept_byte_for_byte(tmp_path: Path) -> None:
    made = source(32, 32, 1, seed=2)
    with AvatarPackage.open(write(made, tmp_path / "first")) as package:
        jpeg = bytes(package.frame_jpeg(0))
    picture = decode(jpeg, (32, 32), "frame")
    with AvatarWriter(tmp_path / "second", made.manifest) as writer:
        writer.add_frame(picture, made.rects[0], None, jpeg)
        for name, data in made.models.items():
            writer.add_model(name, data)
        path = writer.finish()
    assert (path / "pictures.bin").read_bytes() == jpeg
    with AvatarPackage.open(path) as package:
        assert np.array_equal(package.picture(0), picture)


def test_packing_a_folder_gives_the_same_package(tmp_path: Path) -> None:
    made = source(40, 30, 3, seed=3)
    folder = write(made, tmp_path / "made")
    pack(folder, tmp_path / "made.lsa")
    with AvatarPackage.open(tmp_path / "made.lsa") as package:
        check(package, made, exact=True)
    pack(folder, tmp_path / "again.lsa")
    assert (tmp_path / "made.lsa").read_bytes() == (tmp_path / "again.lsa").read_bytes()
    with zipfile.ZipFile(tmp_path / "made.lsa") as archive:
        assert archive.testzip() is None
        names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert set(archive.namelist()) == names


@pytest.mark.parametrize("limit", [None, 1_000], ids=["plain", "as-if-larger-than-2-GiB"])
def test_members_of_an_lsa_are_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """Also for members so large that the zip needs wider fields (a long avatar's regions.npy)."""
    made = source(40, 30, 3, seed=4)
    folder = write(made, tmp_path / "made")
    if limit is not None:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", limit)
    pack(folder, tmp_path / "made.lsa")
    monkeypatch.undo()
    raw = (tmp_path / "made.lsa").read_bytes()
    with zipfile.ZipFile(tmp_path / "made.lsa") as archive:
        for info in archive.infolist():
            at = raw.find((folder / info.filename).read_bytes(), info.header_offset)
            assert at % ALIGNMENT == 0, info.filename
    with AvatarPackage.open(tmp_path / "made.lsa") as package:
        check(package, made, exact=True)


@pytest.mark.parametrize("ending", ["", ".lsa"])
def test_views_outlive_the_package(tmp_path: Path, ending: str) -> None:
    made = source(20, 20, 1, seed=5)
    with AvatarPackage.open(write(made, tmp_path / f"made{ending}")) as package:
        model = package.model("image")
    package.close()
    assert bytes(model) == made.models["image"]


@pytest.mark.parametrize("index", [-1, 2, 1 << 40])
def test_a_frame_that_is_not_there(tmp_path: Path, index: int) -> None:
    with AvatarPackage.open(write(source(20, 20, 2, seed=6), tmp_path / "made")) as package:
        for call in (package.frame_jpeg, package.picture, package.rect, package.crop, package.mask):
            with pytest.raises(IndexError):
                call(index)


def test_nothing_there(tmp_path: Path) -> None:
    for name in ("none", "none.lsa"):
        with pytest.raises(AvatarNotFoundError, match=name):
            AvatarPackage.open(tmp_path / name)


def test_a_missing_member_is_named(tmp_path: Path) -> None:
    with AvatarPackage.open(write(source(20, 20, 1, seed=7), tmp_path / "made")) as package:
        with pytest.raises(AvatarFormatError, match=r"notes\.txt"):
            package.member("notes.txt")
        with pytest.raises(AvatarFormatError, match="not a plain name"):
            package.member("../secret")


@given(count=st.integers(1, 9), start=st.integers(0, 30))
def test_pictures_are_played_there_and_back(count: int, start: int) -> None:
    made = msgspec.structs.replace(source(16, 16, 1, 0).manifest, frame_count=count)
    played = [made.avatar_frame(p, start) for p in range(4 * count)]
    there_and_back = [*range(count), *range(count - 2, 0, -1)] * 40
    assert played == there_and_back[start : start + 4 * count]
    cycle = msgspec.structs.replace(made, loop="cycle")
    assert cycle.avatar_frame(3 * count + 1) == 1 % count


def test_a_file_that_shrinks_while_in_use_is_an_error(tiny_avatar: Path, tmp_path: Path) -> None:
    """Not a dead process: bytes that a file has lost must not be touched."""
    copy = tmp_path / "copy"
    shutil.copytree(tiny_avatar, copy)
    with AvatarPackage.open(copy) as package:
        before = bytes(package.frame_jpeg(0))
        os.truncate(copy / "frames.bin", 100)
        with pytest.raises(AvatarFormatError, match="shorter"):
            package.frame_jpeg(0)
        with pytest.raises(AvatarFormatError, match="shorter"):
            package.picture(1)
    copy = tmp_path / "again"
    shutil.copytree(tiny_avatar, copy)
    with AvatarPackage.open(copy) as package:
        assert package.frame_bytes(0) == before
        view = package.frame_jpeg(0)
        os.truncate(copy / "frames.bin", 0)
        with pytest.raises(OSError, match="Bad address"):
            _native.mapped_bytes(view)  # as where it shrinks between a look at it and the copy
    other = tmp_path / "other"
    shutil.copytree(tiny_avatar, other)
    with AvatarPackage.open(other) as package:
        shutil.rmtree(other)
        assert bytes(package.frame_jpeg(0)) == before, "a deleted file is kept"
