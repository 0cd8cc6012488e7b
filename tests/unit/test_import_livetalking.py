# SPDX-License-Identifier: Apache-2.0
"""Importing LiveTalking's wav2lip avatars: what is found, what is refused, what is warned of."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import livetalking
import numpy as np
import pytest
from PIL import Image

from lipsync_fast.geometry import Rect

torch = pytest.importorskip("torch", reason="the extra train is not installed")

from lipsync_fast.avatars.importing.build import Imported, import_avatar  # noqa: E402
from lipsync_fast.avatars.importing.livetalking import find_weights  # noqa: E402
from lipsync_fast.avatars.package import AvatarPackage  # noqa: E402
from lipsync_fast.errors import AvatarImportError, CheckpointError  # noqa: E402
from lipsync_fast.models.unet import UNet  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small ones of both sizes: ``96.pth`` and ``256.pth``."""
    folder = tmp_path_factory.mktemp("weights")
    for region in (96, 256):
        livetalking.save(livetalking.network(2, region), folder / f"{region}.pth")
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return livetalking.folder(tmp_path_factory.mktemp("original") / "ann", livetalking.frames())


@pytest.fixture
def data(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil, at ``data/avatars/ann``."""
    return Path(shutil.copytree(original, tmp_path / "data" / "avatars" / "ann"))


def imported(data: Path, **more: Any) -> Imported:
    return import_avatar(data, data.parents[2] / "packages", overwrite=True, **more)


def test_both_sizes_are_told_apart_by_their_weights(data: Path, weights: Path) -> None:
    for region in (96, 256):
        made = imported(data, checkpoint=weights / f"{region}.pth")
        with AvatarPackage.open(made.path) as package:
            m = package.manifest
            assert (m.family, m.width, m.region) == ("wav2lip", 2, region)
            assert package.crop(0).shape == (region, region, 3)
        assert made.source.warnings == []


def test_where_the_weights_are_found(data: Path, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(AvatarImportError, match=r"no wav2lip.pth found at .*name it with --check"):
        imported(data)
    for folder in (tmp_path, tmp_path / "data" / "avatars", data):
        (folder / "models").mkdir()
        file = shutil.copy(weights / "96.pth", folder / "models" / "wav2lip.pth")
        assert find_weights(data) == Path(file), "the nearest is taken"
    assert imported(data).source.networks.checkpoint == data / "models" / "wav2lip.pth"


def test_a_bare_state_dict_without_prefix(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "bare.pth"
    torch.save(livetalking.network(2).state_dict(), file)
    assert imported(data, checkpoint=file).path.is_dir()


def test_weights_of_something_else(data: Path, weights: Path, tmp_path: Path) -> None:
    unet = tmp_path / "unet.pth"
    torch.save(UNet(2).state_dict(), unet)
    with pytest.raises(CheckpointError, match="does not fit Wav2Lip"):
        imported(data, checkpoint=unet)
    with pytest.raises(AvatarImportError, match=r"read as .pth only, not as .onnx"):
        imported(data, checkpoint=tmp_path / "wav2lip.onnx")
    state = {f"module.{n}": t for n, t in livetalking.network(2, 256).state_dict().items()}
    del state["module.face_decoder_blocks.7.2.conv_block.0.weight"]
    torch.save({"state_dict": state}, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"missing face_decoder_blocks.7.2.conv_block.0"):
        imported(data, checkpoint=tmp_path / "part.pth")


def test_a_folder_in_parts(data: Path, weights: Path) -> None:
    where = {"checkpoint": weights / "96.pth"}
    (data / "full_imgs" / "00000002.png").unlink()
    with pytest.raises(AvatarImportError, match="3 boxes, but full_imgs has 2 pictures"):
        imported(data, **where)
    (data / "full_imgs" / "00000000.png").unlink()
    with pytest.raises(AvatarImportError, match=r"0.jpg: missing"):
        imported(data, **where)
    shutil.rmtree(data / "full_imgs")
    (data / "coords.pkl").unlink()
    with pytest.raises(AvatarImportError, match="2 parts of a LiveTalking wav2lip avatar"):
        imported(data, form="livetalking", **where)


def test_faces_that_are_not_the_boxes(data: Path, weights: Path) -> None:
    """Only a warning: nothing is made of them."""
    where = {"checkpoint": weights / "96.pth"}
    moved = [(r.y + 14, r.bottom + 14, r.x, r.right) for r in livetalking.RECTS]
    (data / "coords.pkl").write_bytes(pickle.dumps(moved))
    (warning,) = imported(data, **where).source.warnings
    assert "does not hold the face of face_imgs" in warning
    (data / "face_imgs" / "00000001.png").write_bytes(b"no picture")
    assert any("were not checked" in w for w in imported(data, **where).source.warnings)
    shutil.rmtree(data / "face_imgs")
    (warning,) = imported(data, **where).source.warnings
    assert "the face boxes were not checked" in warning


def test_boxes_past_the_frame_are_cut(data: Path, weights: Path) -> None:
    boxes = [(20, 190, 30, 137)] * 3
    (data / "coords.pkl").write_bytes(pickle.dumps(boxes))
    made = imported(data, checkpoint=weights / "96.pth")
    with AvatarPackage.open(made.path) as package:
        assert package.rect(0) == Rect(30, 20, 107, 156)
    assert any("runs past the frame" in w for w in made.source.warnings)


def test_jpegs_do_as_well(data: Path, weights: Path) -> None:
    for file in (data / "full_imgs").iterdir():
        with Image.open(file) as picture:
            picture.save(file.with_suffix(".jpg"), quality=95)
        file.unlink()
    made = imported(data, checkpoint=weights / "96.pth")
    with AvatarPackage.open(made.path) as package:
        far = package.picture(0).astype(int) - livetalking.frames()[0]
        assert np.abs(far).mean() < 3
