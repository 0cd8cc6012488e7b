# SPDX-License-Identifier: Apache-2.0
"""What every backend promises (engine/backends/base.py), on a small avatar."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import backends
import numpy as np
import pytest
from backends import APART, difference
from numpy.typing import NDArray

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends import Backend, LoadedAvatar, RegionJob, create_backend
from lipsync_fast.engine.backends.base import SQUARE
from lipsync_fast.errors import BackendError, RingError
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.frame_store import FrameStore


@pytest.fixture(scope="module")
def package(tiny_avatar: Path) -> Iterator[AvatarPackage]:
    with AvatarPackage.open(tiny_avatar) as opened:
        yield opened


@pytest.fixture(scope="module", params=backends.NAMES)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    made = backends.make(request.param)
    yield made
    made.close()


@pytest.fixture
def apart(backend: Backend) -> int:
    return APART[backend.name]


@pytest.fixture(scope="module")
def avatar(backend: Backend, package: AvatarPackage) -> LoadedAvatar:
    return backend.load(package)


def jobs(avatar: LoadedAvatar, count: int = 7) -> list[RegionJob]:
    rng = np.random.default_rng(5)
    blocks = rng.standard_normal((count, 16, 512)).astype(np.float32) * 3
    return [RegionJob(avatar, k % 5, block) for k, block in enumerate(blocks)]


def keep(place: int, image: NDArray[np.uint8]) -> tuple[int, NDArray[np.uint8]]:
    return place, image


def test_submitted_frames_are_composed_regions(
    backend: Backend, avatar: LoadedAvatar, apart: int
) -> None:
    todo = jobs(avatar)
    regions = backend.regions(todo)
    futures = backend.submit(todo, keep)
    for k, (job, region, future) in enumerate(zip(todo, regions, futures, strict=True)):
        place, frame = future.result(60)
        assert place == k
        assert frame.shape == (192, 160, 3)
        assert frame.flags.writeable
        assert difference(frame, backend.compose(avatar, job.avatar_frame, region)) <= apart


def test_a_batch_gives_what_single_jobs_give(
    backend: Backend, avatar: LoadedAvatar, apart: int
) -> None:
    todo = jobs(avatar)
    together = backend.regions(todo)
    for job, region in zip(todo, together, strict=True):
        assert difference(backend.regions([job])[0], region) <= apart


def test_all_backends_make_the_same_pictures(
    backend: Backend, avatar: LoadedAvatar, package: AvatarPackage
) -> None:
    """Within two grey levels of the CPU's."""
    plain = create_backend("cpu", threads=2)
    loaded = plain.load(package)
    for share in (1.0, 0.3):
        todo = [replace(job, share=share) for job in jobs(avatar)]
        wanted = plain.regions([replace(job, avatar=loaded) for job in todo])
        for made, right in zip(backend.regions(todo), wanted, strict=True):
            assert difference(made, right) <= 2
    mel = np.random.default_rng(1).standard_normal((70, 16, 80)).astype(np.float32)
    features = backend.features(avatar, mel) - plain.features(loaded, mel)
    assert np.abs(features).max() <= 1e-4
    plain.close()


def test_share_goes_from_the_avatars_own_mouth_to_the_generated_one(
    backend: Backend, avatar: LoadedAvatar, package: AvatarPackage
) -> None:
    job = jobs(avatar, 1)[0]
    frames = [
        backend.submit([replace(job, share=share)], keep)[0].result(60)[1].astype(int)
        for share in (0.0, 0.5, 1.0)
    ]
    x1, y1, x2, y2 = package.rect(0).corners
    own = package.picture(0).astype(int)
    outside = np.ones(own.shape[:2], bool)
    outside[y1:y2, x1:x2] = False
    for frame in frames:
        assert np.array_equal(frame[outside], own[outside])
    assert np.abs(frames[0] - own).max() <= 2, "the crop is resized and put back"
    assert np.abs(frames[2] - own).max() > 20
    assert np.abs(frames[1] - (frames[0] + frames[2]) / 2).max() <= 1.5
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            backend.submit([replace(job, share=share)], keep)


def test_an_error_in_finish_is_the_futures(backend: Backend, avatar: LoadedAvatar) -> None:
    def refuse(place: int, image: NDArray[np.uint8]) -> None:
        raise OSError("no room")

    future = backend.submit(jobs(avatar, 1), refuse)[0]
    with pytest.raises(OSError, match="no room"):
        future.result(60)


def test_wrong_jobs_are_refused(backend: Backend, avatar: LoadedAvatar) -> None:
    job = jobs(avatar, 1)[0]
    with pytest.raises(ValueError, match="audio block"):
        backend.submit([replace(job, audio_block=job.audio_block[:15])], keep)
    with pytest.raises(IndexError):
        backend.submit([replace(job, avatar_frame=5)], keep)[0].result(60)
    with pytest.raises(TypeError, match="another backend"):
        backend.regions([replace(job, avatar=object())])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", backends.NAMES)
def test_closing_cancels_what_has_not_begun(package: AvatarPackage, name: str) -> None:
    backend = backends.make(name, threads=1)
    avatar = backend.load(package)
    futures = backend.submit(jobs(avatar, 60), keep)
    backend.close()
    assert all(future.done() for future in futures)
    with pytest.raises(BackendError, match="closed"):
        backend.regions(jobs(avatar, 1))


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_a_part_is_that_part_of_the_frame(
    backend: Backend, avatar: LoadedAvatar, share: float, apart: int
) -> None:
    todo = [replace(job, share=share) for job in jobs(avatar)]
    whole = [future.result(60)[1] for future in backend.submit(todo, keep)]
    for part in (Rect(32, 40, 96, 96), Rect(16, 32, 144, 118), Rect(0, 0, 160, 192)):
        parts = backend.submit([replace(job, part=part) for job in todo], keep)
        for frame, future in zip(whole, parts, strict=True):
            made = future.result(60)[1]
            assert made.flags.writeable
            assert difference(made, frame[part.slices]) <= apart


def test_a_square_is_what_the_network_made(
    backend: Backend, avatar: LoadedAvatar, apart: int
) -> None:
    for share in (1.0, 0.4):
        todo = [replace(job, share=share) for job in jobs(avatar)]
        futures = backend.submit([replace(job, part=SQUARE) for job in todo], keep)
        for region, future in zip(backend.regions(todo), futures, strict=True):
            assert difference(future.result(60)[1], region) <= apart


@pytest.mark.parametrize("name", backends.NAMES)
def test_warmed_frames_are_the_same_and_unloaded_ones_leave_nothing(
    package: AvatarPackage, name: str
) -> None:
    """Also where a later avatar takes the place in memory of one that is gone."""
    backend = backends.make(name, 1, live=True)
    try:
        made = []
        for warm in (False, True, True):
            avatar = backend.load(package)
            part = Rect(32, 40, 96, 96)
            if warm:
                assert backend.warm(avatar, [(k, part) for k in range(5)]) == 5
                held = backend.cache_bytes
            todo = [replace(job, part=part) for job in jobs(avatar)]
            made.append([f.result(60)[1] for f in backend.submit(todo, keep)])
            if warm:
                assert backend.cache_bytes == held
            backend.unload(avatar)
            assert sum(backend.cache_bytes.values()) == 0
            del avatar, todo
        for frames in made[1:]:
            assert max(map(difference, frames, made[0])) <= APART[name]
    finally:
        backend.close()


def test_what_one_backend_made_the_next_one_finds(package: AvatarPackage) -> None:
    """The same pictures, without the image network; and another avatar's memory is refused."""
    fd = FrameStore.create()
    made = []
    for k in range(2):
        backend = create_backend("cpu", threads=2, live=True)
        avatar = backend.load(package)
        backend.share(avatar, fd)
        if k:
            avatar.image = None  # type: ignore[attr-defined]
        made.append(backend.regions(jobs(avatar)))
        assert backend.cache_bytes["image halves"] == 0
        assert backend.cache_bytes["image halves, shared"] > 0
        backend.unload(avatar)
        assert backend.cache_bytes["image halves, shared"] == 0
        backend.close()
    plain = create_backend("cpu", threads=1)
    made.append(plain.regions(jobs(plain.load(package))))
    plain.close()
    for shared, found, own in zip(*made, strict=True):
        assert np.array_equal(shared, own)
        assert np.array_equal(found, own)
    os.close(fd)


def test_memory_of_another_avatar_is_not_shared(package: AvatarPackage) -> None:
    fd = FrameStore.create()
    FrameStore(fd, bytes(32), 5, 100)
    backend = create_backend("cpu", threads=1)
    avatar = backend.load(package)
    with pytest.raises(RingError, match="another avatar"):
        backend.share(avatar, fd)
    os.close(fd)
    assert len(backend.regions(jobs(avatar, 1))) == 1
    backend.close()


def test_what_was_made_before_is_shared_later(package: AvatarPackage) -> None:
    fd = FrameStore.create()
    backend = create_backend("cpu", threads=1, live=True)
    avatar = backend.load(package)
    before = backend.regions(jobs(avatar))
    assert backend.cache_bytes["image halves"] > 0
    backend.share(avatar, fd)
    avatar.image = None  # type: ignore[attr-defined]
    after = backend.regions(jobs(avatar))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert backend.cache_bytes["image halves"] == 0, "they are held once"
    os.close(fd)
    backend.close()


@pytest.mark.parametrize("live", [False, True])
def test_features_are_the_same_however_many_at_once(package: AvatarPackage, live: bool) -> None:
    backend = create_backend("cpu", threads=3, live=live)
    avatar = backend.load(package)
    mel = np.random.default_rng(1).standard_normal((16, 16, 80)).astype(np.float32)
    together = backend.features(avatar, mel)
    for k, window in enumerate(mel):
        assert np.array_equal(backend.features(avatar, window[None])[0], together[k])
    assert backend.features(avatar, mel[:0]).shape == (0, 512)
    backend.close()
