# SPDX-License-Identifier: Apache-2.0
"""What a step that follows the sound sees: nothing in its picture tells the mouth to be made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from films import FRAMES, RECT, film, meshes, openings
from torch.nn import functional

from lipsync_fast.geometry import Rect
from lipsync_fast.prepare.folder import PreparedAvatar
from lipsync_fast.train.data import Crops, split
from lipsync_fast.train.exemplars import Exemplars
from lipsync_fast.train.follow import (
    FADE,
    HEARD,
    FollowData,
    FollowLesson,
    edge_of,
    faded,
    picture_loss,
)
from lipsync_fast.train.look import laplacian, seam, with_window
from lipsync_fast.train.losses import texture_loss
from lipsync_fast.train.mouths import MEASURES, Mouths
from lipsync_fast.train.state import Best, Follows

REGION = 224


class Numbered:
    """Sounds whose blocks say which they are."""

    def __len__(self) -> int:
        return 4 * FRAMES

    def block(self, index: int) -> np.ndarray:
        return np.full((32, 16, 16), index, np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return film(tmp_path_factory.mktemp("films") / "film")


@pytest.fixture(scope="module")
def mouths() -> Mouths:
    return Mouths(meshes(openings()), [RECT] * FRAMES, REGION, split(FRAMES)[0])


@pytest.fixture(scope="module")
def crops(folder: Path) -> Crops:
    return Crops(PreparedAvatar.open(folder), REGION)


@pytest.fixture(scope="module")
def exemplars(crops: Crops, mouths: Mouths) -> Exemplars:
    return Exemplars(crops, mouths, np.ones(MEASURES, np.float32), seed=5)


@pytest.fixture
def data(crops: Crops, mouths: Mouths, exemplars: Exemplars) -> FollowData:
    heard = np.eye(len(exemplars), dtype=np.float32)[np.arange(4 * FRAMES) % len(exemplars)]
    window = mouths.window(REGION)
    return FollowData(crops, mouths, exemplars, Numbered(), heard, window, 6, seed=5)  # type: ignore[arg-type]


def test_a_batch(data: FollowData, exemplars: Exemplars) -> None:
    batch = data.batch(3)
    box, kinds = data.window, len(exemplars)
    assert batch.image.shape == (2, 6, REGION, REGION)
    assert batch.target.shape == (6, 3, box.height, box.width)
    assert batch.weight.shape == (6, 1, box.height, box.width)
    assert batch.shares.shape == (6, kinds)
    assert batch.shares.sum() == 6
    assert batch.audio.shape == (HEARD, 32, 16, 16)
    assert {a.dtype for a in batch} == {np.dtype(np.float32)}
    for number, heard in zip(batch.audio[:, 0, 0, 0].astype(int), batch.heard, strict=True):
        assert heard[number % kinds] == 1
    assert all(map(np.array_equal, batch, data.batch(3)))
    assert not np.array_equal(batch.audio, data.batch(4).audio)


def test_the_picture_is_one_whatever_mouths_shall_come_out(data: FollowData) -> None:
    shown, wanted = [], []
    for step in range(15):
        batch = data.batch(step)
        own = batch.image[(slice(None), slice(0, 3), *data.window.slices)]
        for k, target in enumerate(batch.target):  # its edge is the picture's own
            np.testing.assert_allclose(target[:, 0], own[k // 3][:, 0], atol=0.01)
            np.testing.assert_allclose(target[:, :, -1], own[k // 3][:, :, -1], atol=0.01)
            shown.append(float((own[k // 3] < 0.2).mean()))
            wanted.append(float((target < 0.2).mean()))
    assert np.mean(np.array(wanted) > 0.02) > 0.5
    assert abs(np.corrcoef(shown, wanted)[0, 1]) < 0.4, "it tells nothing of them"


def test_a_frame_laid_over_itself_is_itself(data: FollowData) -> None:
    box = data.window
    crop = data.crops.crop(60)[4:-4, 4:-4, ::-1].astype(np.float32) / 255
    made = data.laid_over(60, 60).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(made, crop[box.slices], atol=0.01)


def test_a_mouth_is_laid_where_the_other_head_has_its_own(data: FollowData) -> None:
    open_ = openings()
    wide = int(np.argmax(open_[:60]))
    onto = 12
    assert open_[onto] == 0
    lips, face = data.parts(wide, onto)
    dark = data.laid_over(wide, onto).numpy().max(0) < 0.25
    assert dark.sum() > 100
    assert (lips.numpy()[dark] > 0.5).mean() > 0.9
    assert 0 <= float(face.min()) <= float(face.max()) <= 1
    assert float(lips.mean()) < 0.6


def test_fading_and_edges(data: FollowData) -> None:
    soft, edge = faded(data.window), edge_of(data.window)
    assert soft.shape == edge.shape == (data.window.height, data.window.width)
    assert float(soft[0].max()) < 0.15
    assert float(soft[2 * FADE : -2 * FADE, 2 * FADE : -2 * FADE].min()) == pytest.approx(1)
    assert float(edge[0].min()) == float(edge[:, -1].min()) == 1
    assert float(edge[6:-6, 6:-6].max()) == 0


def test_detail_counts_wherever_it_lies() -> None:
    generator = torch.Generator().manual_seed(3)
    rich = 0.5 + 0.1 * torch.randn(1, 1, 40, 60, generator=generator).expand(1, 3, 40, 60)
    aside, soft = rich.roll(1, 3), functional.avg_pool2d(rich, 5, 1, 2)
    weight = torch.ones(1, 1, 40, 60)
    assert float(texture_loss(rich, rich, weight)) == 0
    assert float((aside - rich).abs().mean()) > float((soft - rich).abs().mean())
    assert float(texture_loss(aside, rich, weight)) < 0.5 * float(texture_loss(soft, rich, weight))
    assert float(texture_loss(soft, rich, 0 * weight)) == 0


def test_loss_counts_lips_more_and_edges_most() -> None:
    goal, before = torch.full((1, 3, 40, 60), 0.5), torch.full((1, 3, 40, 60), 0.5)
    weight = torch.full((1, 1, 40, 60), 0.5)
    weight[..., 15:25, 20:40] = 4.5
    edge = torch.zeros(40, 60)
    edge[:4] = 1

    def of(rows: slice, columns: slice) -> float:
        made = goal.clone()
        made[:, :, rows, columns] += 0.1
        return float(picture_loss(made, goal, before, weight, edge))

    assert float(picture_loss(goal, goal, before, weight, edge)) == 0
    lips, cheek = of(slice(18, 22), slice(25, 35)), of(slice(30, 34), slice(25, 35))
    top = of(slice(0, 4), slice(25, 35))
    assert lips > 3 * cheek > 0
    assert top > 2 * cheek


def test_seams_and_sharpness_are_measured() -> None:
    rng = np.random.default_rng(3)
    crop = rng.integers(90, 160, (232, 232, 3)).astype(np.uint8)
    window = Rect(60, 60, 100, 80)
    region = np.ascontiguousarray(crop[4:-4, 4:-4, ::-1].transpose(2, 0, 1)) / np.float32(255)
    same = with_window(crop, region.astype(np.float32), window)
    assert np.abs(same.astype(int) - crop).max() <= 1
    assert seam(same, window) == pytest.approx(1, abs=0.15)
    brighter = with_window(crop, np.clip(region + 0.3, 0, 1).astype(np.float32), window)
    assert seam(brighter, window) > 1.5
    smooth = np.full((50, 50, 3), 120, np.uint8)
    assert laplacian(smooth).var() == 0 < laplacian(crop).var()


def test_the_best_follows_and_is_sharp() -> None:
    def look(r: float, sharpness: float) -> Best:
        return Best(0, 1.0, 1.0, Follows(r, 1.0, sharpness, 1.0))

    better = FollowLesson.better
    assert better(look(0.66, 1.1), look(0.67, 0.85)), "a little less in step, and sharp"
    assert better(look(0.60, 1.1), look(0.50, 1.1))
    assert not better(look(0.50, 1.1), look(0.60, 1.0)), "sharper than the film is worth nothing"
    assert better(look(0.60, 1.1), look(0.60, 1.2)), "of those as good, the later one"
