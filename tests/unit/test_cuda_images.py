# SPDX-License-Identifier: Apache-2.0
"""What is kept of avatars' frames on a device: slots of image halves, and faces."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lipsync_fast.geometry import Rect

pytest.importorskip("torch", reason="the CUDA backend needs torch")

import torch

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.cuda.device import HostDevice
from lipsync_fast.engine.backends.cuda.images import FIRST_COUNT, Face, Faces, Images, Share

SHAPES = {"x1": (2, 6, 6), "x2": (3, 3, 3)}
EACH = 4 * (2 * 36 + 27)


def images(frames: int = 100, limit: int = 1 << 30, used: int = 0) -> tuple[Images, Share]:
    share = Share(limit, used)
    return Images(HostDevice(), SHAPES, torch.float32, frames, share), share


def fill(kept: Images, frame: int, slot: int) -> None:
    for level in kept.levels.values():
        level[slot] = frame


def held(kept: Images, slot: int) -> set[float]:
    return {float(value) for level in kept.levels.values() for value in level[slot].unique()}


def test_halves_stay_where_they_are_while_there_come_more() -> None:
    kept, share = images()
    where = {}
    for batch, frame in enumerate(range(100), 1):
        halves = kept.plan([frame], batch, batch - 1)
        assert halves.made == [frame]
        (where[frame],) = halves.slots
        fill(kept, frame, where[frame])
    assert kept.plan(list(range(100)), 101, 100).index == [where[k] for k in range(100)]
    assert all(held(kept, slot) == {float(frame)} for frame, slot in where.items())
    assert kept.used == kept.allocated == share.used == 100 * EACH


def test_within_its_share_the_least_used_are_given_up_and_never_one_in_flight() -> None:
    kept, share = images(limit=FIRST_COUNT * EACH)
    first = list(range(FIRST_COUNT))
    assert len(kept.plan(first, 1, 0).index) == FIRST_COUNT
    assert share.used == share.limit
    assert kept.plan([50], 2, ended=0).index == [], "batch 1 reads all of them"
    assert kept.plan([3], 2, ended=0).made == []
    halves = kept.plan([50, 51], 3, ended=1)
    assert len(halves.made) == 2
    assert kept.there(3)
    assert sum(kept.there(frame) for frame in first) == FIRST_COUNT - 2
    # One more than there are slots, in one batch: the batch takes what there is room for.
    halves = kept.plan(list(range(60, 60 + FIRST_COUNT + 1)), 9, ended=8)
    assert len(halves.index) == FIRST_COUNT


def test_what_was_not_computed_is_forgotten() -> None:
    kept, _ = images()
    halves = kept.plan([1, 2], 1, 0)
    kept.undo(halves)
    assert kept.plan([1, 2], 2, 0).made == [1, 2]


def test_shed_and_freed_ones_take_no_more_than_the_least() -> None:
    kept, share = images()
    kept.plan(list(range(60)), 1, 0)
    assert kept.shed() == (64 - FIRST_COUNT) * EACH
    assert share.used == kept.allocated == FIRST_COUNT * EACH
    assert kept.plan([5], 2, 0).made == [5]
    assert kept.shed() == 0
    kept.free()
    assert share.used == kept.allocated == 0


def test_preparing_leaves_room_for_what_is_asked_for() -> None:
    kept, _ = images(limit=40 * EACH)
    assert kept.may_prepare(1.0)
    kept.plan(list(range(FIRST_COUNT)), 1, 0)
    assert kept.may_prepare(1.0), "32 fit"
    assert not kept.may_prepare(0.5), "but not within half of the share"
    few, _ = images(frames=3, limit=0)
    assert few.may_prepare(0.5), "its least is its own"
    few.plan([0, 1, 2], 1, 0)
    assert not few.may_prepare(1.0)


def test_without_memory_it_makes_do(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, share = images()
    kept.plan(list(range(FIRST_COUNT)), 1, 0)

    def refuse(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", refuse)
        halves = kept.plan([70], 2, ended=1)
    assert halves.made == [70]
    assert share.limit == share.used == FIRST_COUNT * EACH
    assert all(level.shape[0] == FIRST_COUNT for level in kept.levels.values())


# ---------------------------------------------------------------- faces
def test_faces_are_those_of_the_package_and_found_again(tiny_avatar: Path) -> None:
    faces, owner, part = Faces(HostDevice(), 1 << 24), object(), Rect(16, 24, 134, 126)
    with AvatarPackage.open(tiny_avatar) as package:
        key = (owner, 2, part)
        assert faces.find(key) is None
        face = faces.load(key, package, 2, part)
        assert faces.find(key) is face
        assert np.array_equal(face.held.crop.numpy(), package.crop(2))
        assert np.array_equal(face.held.pixels.numpy(), package.picture(2)[24:150, 16:150])
        assert face.row == (face.held.pixels.data_ptr(), 134, 126, 16 | 16 << 32, 96 | 96 << 32, 0)
        assert face.crop == face.held.crop.data_ptr()
        assert faces.used == face.held.nbytes
        faces.forget(owner)
        assert faces.find(key) is None
        with pytest.raises(IndexError):
            faces.load((owner, 5, part), package, 5, part)
        with pytest.raises(ValueError, match="without its face"):
            faces.load((owner, 1, Rect(0, 0, 50, 50)), package, 1, Rect(0, 0, 50, 50))


def test_faces_that_are_loaded_together_are_those_that_are_loaded_alone() -> None:
    """By DALI where it is installed."""
    alone, together, owner = Faces(HostDevice(), 1 << 26), Faces(HostDevice(), 1 << 26), object()
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        wanted = {(owner, k, package.rect(k)): k for k in range(10)}
        there = together.load((owner, 3, package.rect(3)), package, 3, package.rect(3))
        found = together.load_some(package, wanted)
        assert found[3] is there
        assert [face.held.index for face in found] == list(range(10))
        assert together.used == sum(face.held.nbytes for face in found)
        for key, face in zip(wanted, found, strict=True):
            assert together.find(key) is face
            other = alone.load(key, package, wanted[key], package.rect(wanted[key]))
            assert np.array_equal(face.held.pixels.numpy(), other.held.pixels.numpy())
            assert np.array_equal(face.held.crop.numpy(), other.held.crop.numpy())
            assert face.row[1:-1] == other.row[1:-1]


def test_a_face_that_is_dropped_lives_as_long_as_a_batch_holds_it(tiny_avatar: Path) -> None:
    faces, owner, part = Faces(HostDevice(), 1), object(), Rect(32, 40, 96, 96)
    with AvatarPackage.open(tiny_avatar) as package:
        first = faces.load((owner, 0, part), package, 0, part)
        faces.load((owner, 1, part), package, 1, part)
        assert faces.find((owner, 0, part)) is None, "there is room for one alone"
        assert faces.shed() > 0
        assert np.array_equal(first.held.crop.numpy(), package.crop(0))


def test_many_threads_load_faces(tiny_avatar: Path) -> None:
    faces, owner, part = Faces(HostDevice(), 1 << 24), object(), Rect(32, 40, 96, 96)
    found: list[Face] = []
    with AvatarPackage.open(tiny_avatar) as package:

        def load(index: int) -> None:
            found.append(faces.load((owner, index, part), package, index, part))

        threads = [threading.Thread(target=load, args=(k % 5,)) for k in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 10
        assert {face.held.index for face in found} == set(range(5))
