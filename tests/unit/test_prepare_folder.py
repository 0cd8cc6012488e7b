# SPDX-License-Identifier: Apache-2.0
"""Prepared folders: what is in them, what is refused of them, and the avatar made of one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from videos import demo_landmarks, demo_pictures, demo_rects, tone, write_video

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import (
    AvatarFormatError,
    AvatarNotFoundError,
    AvatarVersionError,
    PrepareError,
)
from lipsync_fast.prepare.folder import PreparedAvatar, pack_prepared
from lipsync_fast.prepare.one import prepare_one
from lipsync_fast.prepare.request import Progress, Request, name_for, statement

FRAMES = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped avatar's frames, prepared."""
    place = tmp_path_factory.mktemp("prepare")
    video = write_video(place / "her.mkv", demo_pictures(FRAMES), sound=tone(FRAMES))
    np.save(place / "her.npy", demo_landmarks(FRAMES))
    maps = place / "maps"
    maps.mkdir()
    from PIL import Image

    labels = np.zeros((180, 320, 3), np.uint8)
    labels[:85] = 255  # white stays
    Image.fromarray(labels).save(maps / "3.png")
    seen: list[Progress] = []
    request = Request(
        video=str(video),
        name="her",
        out=str(place / "out"),
        consent="she exists nowhere",
        licence="CC0-1.0",
        stated_by="a test",
        synthetic=True,
        landmarks=str(place / "her.npy"),
        parsing=str(maps),
        loop="pingpong",
    )
    result = prepare_one(request, seen.append)
    assert result.frames == FRAMES
    assert {one.stage for one in seen} >= {"reading", "looking", "finishing"}
    assert [p.name for p in (place / "out").iterdir()] == ["her"]
    return Path(result.path)


def test_what_is_in_it(folder: Path) -> None:
    with PreparedAvatar.open(folder) as prepared:
        prepared.verify()
        m = prepared.manifest
        assert len(prepared) == FRAMES
        assert (m.frame_width, m.frame_height, m.points) == (320, 180, 3)
        assert m.consent.startswith("she exists nowhere (stated by a test on 2")
        assert m.source.codec == "h264"
        true = demo_pictures(FRAMES)
        for i in (0, 17, FRAMES - 1):
            assert np.abs(prepared.picture(i).astype(int) - true[i]).mean() < 3
        rects = np.array([prepared.rect(i).corners for i in range(FRAMES)])
        assert np.abs(rects - demo_rects(FRAMES)).max() <= 2
        assert np.array_equal(prepared.landmarks, demo_landmarks(FRAMES))
        sound = prepared.sound()
        assert sound is not None
        assert np.array_equal(sound, tone(FRAMES))
        assert prepared.crop(5, 232).shape == (232, 232, 3)
        mask = prepared.mask(3)
        x1, y1, x2, y2 = prepared.rect(3).corners
        assert mask is not None
        assert mask.shape == (y2 - y1, x2 - x1)
        assert mask[: 85 - y1].all()
        assert not mask[85 - y1 :].any()
        assert prepared.mask(4) is None


def test_reports(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert report["frames"] == FRAMES
    assert report["warnings"] == ["the face is 66 pixels wide; from 160 on it looks sharp"]
    assert "there and back" in (folder / "report.txt").read_text()
    from PIL import Image

    with Image.open(folder / "sheet.jpg") as sheet:
        assert sheet.size == (4 * 320, 3 * (180 + 18))
        green = np.asarray(sheet.convert("RGB")).astype(int)
    outlined = (green[..., 1] > green[..., 0] + 60) & (green[..., 1] > green[..., 2] + 40)
    for row in range(3):
        for column in range(4):
            tile = outlined[row * 198 : row * 198 + 180, column * 320 : (column + 1) * 320]
            assert tile.any(axis=0).sum() >= 60  # the rectangle is there, as wide as the face


def test_the_avatar_of_it(folder: Path, tiny_avatar: Path, tmp_path: Path) -> None:
    with AvatarPackage.open(tiny_avatar) as tiny, PreparedAvatar.open(folder) as prepared:
        models = {name: bytes(tiny.model(name)) for name in ("audio_encoder", "image", "decoder")}
        for dest in (tmp_path / "her", tmp_path / "other.lsa"):
            made = pack_prepared(
                prepared, dest, models, width=2, region=224, provenance="networks of a test"
            )
            loop = prepared.manifest.loop
            with AvatarPackage.open(made) as package:
                package.verify()
                m = package.manifest
                assert (m.name, m.frame_count, m.loop) == ("her", loop.count, "pingpong")
                assert m.consent == prepared.manifest.consent
                assert m.provenance.endswith("networks of a test")
                assert m.synthetic
                for i in range(loop.count):
                    assert package.frame_jpeg(i) == prepared.frame_jpeg(loop.first + i)
                    assert package.rect(i) == prepared.rect(loop.first + i)


def test_damage_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AvatarNotFoundError):
        PreparedAvatar.open(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    text = (copy / "prepared.json").read_text()

    def refused(words: str, kind: type[Exception] = AvatarFormatError) -> None:
        with pytest.raises(kind, match=words), PreparedAvatar.open(copy) as prepared:
            prepared.verify()

    (copy / "prepared.json").write_text(text.replace('"format_version": 1', '"format_version": 2'))
    refused("update lipsync-fast", AvatarVersionError)
    (copy / "prepared.json").write_text(text.replace("lipsync-prepared", "something"))
    refused("cannot be read")
    (copy / "prepared.json").write_text(text.replace('"count": ', '"count": 9'))
    refused("leaves the frames")
    (copy / "prepared.json").write_text(text)
    for name in ("frames.bin", "landmarks.npy", "sound.wav"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-3])
        refused(f"{name} has")
        (copy / name).write_bytes(whole[:-100] + bytes(100))
        refused(f"{name} is damaged")
        (copy / name).unlink()
        refused(f"{name} is missing")
        (copy / name).write_bytes(whole)
    (copy / "prepared.json").unlink()
    refused("avatar prepare")


def test_indexes_that_lie(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    manifest = json.loads((copy / "prepared.json").read_text())
    for name in ("frames.npy", "rects.npy", "masks.npy"):
        whole = (copy / name).read_bytes()
        (copy / name).write_bytes(whole[:-8] + b"\xff" * 8)
        with pytest.raises(AvatarFormatError, match=r"do not fit|outside its frame"):
            PreparedAvatar.open(copy)
        (copy / name).write_bytes(whole)
    manifest["points"] = 4
    (copy / "prepared.json").write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(AvatarFormatError, match=r"landmarks\.npy is not"):
        PreparedAvatar.open(copy)


def test_names_and_statements() -> None:
    assert name_for(Path("a/Anna (1).mp4"), None) == "Anna-1"
    assert name_for(Path("x.mp4"), "given") == "given"
    with pytest.raises(PrepareError, match="no name can be made"):
        name_for(Path("ÄÖÜ.mp4"), None)
    for bad in ("../up", "", "a" * 65, "-x", "a/b"):
        with pytest.raises(PrepareError, match="letters, digits"):
            name_for(Path("x.mp4"), bad)
    assert statement(" she agreed ", "consent") == "she agreed"
    for bad in ("  ", "a\x1b[2J", "x" * 10_001):
        with pytest.raises(PrepareError, match="the statement of consent"):
            statement(bad, "consent")
