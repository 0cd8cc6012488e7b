# SPDX-License-Identifier: Apache-2.0
"""A device's memory: shares, and what happens when there is none left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the CUDA backend needs torch")

import torch

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import RegionJob
from lipsync_fast.engine.backends.cuda.avatar import Shapes
from lipsync_fast.engine.backends.cuda.backend import CudaBackend
from lipsync_fast.engine.backends.cuda.budget import Budget
from lipsync_fast.engine.backends.cuda.device import Fault, HostDevice
from lipsync_fast.engine.backends.cuda.lanes import Buffer, Staging
from lipsync_fast.errors import AvatarError, BackendError, DeviceLostError


class Kernels:
    """The kernels, of which one fails when it is told to."""

    def __init__(self, kernels: Any, fail: Callable[[], None]) -> None:
        self._kernels, self._fail = kernels, fail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def compose(self, *args: Any) -> None:
        self._fail()
        self._kernels.compose(*args)


class Failing(HostDevice):
    """A host whose next kernels or graphs fail as a device's would."""

    def __init__(self, free: int = 4 << 30) -> None:
        super().__init__(free)
        self.errors: list[Exception] = []
        self.released = 0
        self.kernels = Kernels(self.kernels, self.fail)  # type: ignore[assignment]

    def fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def capture(self, warm: Any, run: Any) -> Any:
        self.fail()
        return super().capture(warm, run)

    def release_unused(self) -> None:
        self.released += 1

    def fault(self, error: BaseException) -> Fault:
        return Fault.LOST if "illegal memory access" in str(error) else super().fault(error)


@pytest.fixture(scope="module")
def package(tiny_avatar: Path) -> Iterator[AvatarPackage]:
    with AvatarPackage.open(tiny_avatar) as opened:
        yield opened


@pytest.fixture
def device() -> Failing:
    return Failing()


@pytest.fixture
def backend(device: Failing) -> Iterator[CudaBackend]:
    made = CudaBackend(device, precision="fp32", sizes=(1, 2, 4))
    yield made
    made.close()


def job(avatar: Any, index: int = 0) -> RegionJob:
    block = np.random.default_rng(index).standard_normal((16, 512)).astype(np.float32)
    return RegionJob(avatar, index, block)


# ---------------------------------------------------------------- the budget by itself
def test_memory_is_made_by_giving_up_caches_once(device: Failing) -> None:
    budget, freed, tries = Budget(device), [], []
    budget.may_shed(lambda: freed.append("first") or 100)
    budget.may_shed(lambda: freed.append("second") or 50)

    def act() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise MemoryError
        return "done"

    assert budget.with_room(act, "a thing") == "done"
    assert freed == ["first", "second"]
    assert device.released == 1
    assert budget.with_room(lambda: 3, "another") == 3
    assert device.released == 1


def test_without_room_after_that_it_is_refused_in_words(device: Failing) -> None:
    budget, tries = Budget(device), []

    def act() -> None:
        tries.append(1)
        raise MemoryError

    with pytest.raises(
        BackendError, match=r"not enough memory for this avatar.*load fewer avatars"
    ):
        budget.with_room(act, "this avatar")
    assert len(tries) == 2


def test_other_errors_cost_no_caches(device: Failing) -> None:
    budget = Budget(device)

    def raises(error: Exception) -> None:
        raise error

    with pytest.raises(KeyError):
        budget.with_room(lambda: raises(KeyError("x")), "a thing")
    with pytest.raises(DeviceLostError, match="emulated has failed: CUDA error: an illegal memory"):
        budget.with_room(
            lambda: raises(RuntimeError("CUDA error: an illegal memory access\nmore")), "a thing"
        )
    assert budget.shed_count == 0


@pytest.mark.slow
def test_shares_follow_from_what_is_free(package: AvatarPackage) -> None:
    budget = Budget(Failing(1 << 30))
    assert budget.images + budget.faces + budget.batch < 1 << 30
    small = CudaBackend(Failing(40 << 20), precision="fp32")
    try:
        each = Shapes.of(package).frame_bytes(torch.float32)
        avatar = small.load(package)
        assert max(avatar.decoder.sizes) * each <= small.budget.batch
        assert max(avatar.decoder.sizes) < 64
        assert small.regions([job(avatar, k) for k in range(5)])
    finally:
        small.close()


# ---------------------------------------------------------------- the backend without memory
def test_an_avatar_without_room_is_refused_and_the_rest_goes_on(
    backend: CudaBackend, device: Failing, package: AvatarPackage
) -> None:
    avatar = backend.load(package)
    backend.warming.wait()
    before = backend.regions([job(avatar)])[0]
    used = backend._share.used
    device.errors = [MemoryError(), MemoryError()]
    with pytest.raises(AvatarError, match="not enough memory for this avatar"):
        backend.load(package)
    assert backend.budget.shed_count == 1
    assert backend._share.used <= used, "nothing is left of it"
    assert np.array_equal(backend.regions([job(avatar)])[0], before)
    device.errors = [MemoryError()]
    assert backend.load(package) is not avatar, "once is made up for by the caches"


def test_a_batch_without_room_is_made_again_without_the_caches(
    backend: CudaBackend, device: Failing, package: AvatarPackage
) -> None:
    avatar = backend.load(package)
    backend.warming.wait()
    before = backend.regions([job(avatar, k) for k in range(3)])
    device.errors = [MemoryError()]
    again = backend.regions([job(avatar, k) for k in range(3)])
    assert backend.budget.shed_count == 1
    for one, other in zip(before, again, strict=True):
        assert np.array_equal(one, other)
    device.errors = [MemoryError(), MemoryError()]
    with pytest.raises(BackendError, match="not enough memory for a batch"):
        backend.regions([job(avatar)])
    assert np.array_equal(backend.regions([job(avatar)])[0], before[0])


def test_graphs_without_room_are_done_without(device: Failing, package: AvatarPackage) -> None:
    backend = CudaBackend(device, precision="fp32", sizes=(1, 2, 4))
    try:
        device.capture = _refuse_larger()  # type: ignore[method-assign]
        avatar = backend.load(package)
        assert backend.settle(60)
        assert avatar.decoder.ready == (1,)
        assert len(backend.regions([job(avatar, k) for k in range(5)])) == 5
        assert backend.budget.shed_count == 0, "caches are worth more than a graph"
    finally:
        backend.close()


def _refuse_larger() -> Any:
    """Captures fail for want of memory once each network has its smallest graph."""
    made = []

    def capture(warm: Any, run: Any) -> Any:
        made.append(1)
        if len(made) > 3:
            raise MemoryError
        return run

    return capture


# ---------------------------------------------------------------- a batch's own memory
def test_a_staging_grows_when_it_begins_and_never_within() -> None:
    staging = Staging(HostDevice(), 512)
    staging.begin(500)
    placed, array = staging.room((5, 4), "int32")
    array[:] = np.arange(20).reshape(5, 4)
    _, other = staging.room((3,), "int64")
    other[:] = 7
    staging.upload()
    assert staging.there(placed).tolist() == array.tolist()
    with pytest.raises(ValueError, match="bytes in a staging of"):
        staging.room((1000,), "float32")
    staging.begin(8000)
    placed, array = staging.room((1000,), "float32")
    array[:] = np.arange(1000)
    empty, _ = staging.room((0, 16, 512), "float32")
    staging.upload()
    assert staging.there(placed)[999] == 999
    assert staging.there(empty).shape == (0, 16, 512)
    assert placed.at % 256 == 0


def test_a_buffer_keeps_its_memory_while_it_is_large_enough() -> None:
    buffer = Buffer(lambda count: torch.zeros(count, dtype=torch.uint8))
    address = buffer.room(100).data_ptr()
    assert buffer.room(80).data_ptr() == buffer.room(120).data_ptr() == address
    assert len(buffer.room(1000)) == 1000
