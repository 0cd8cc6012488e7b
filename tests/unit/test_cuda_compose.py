# SPDX-License-Identifier: Apache-2.0
"""The image kernels, run on the host: the bytes of the CPU's image path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lipsync_fast import _emulated, _native
from lipsync_fast.arrays import F32, U8
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect

ORDERS = ("forward", "backward", "shuffled")
TYPES = ("float32", "float16", "bfloat16")
COMPOSED, SQUARE, REGION, BILINEAR = 0, 1, 2, 3
"""Modes of a compose job; in the first and the last, it is resized."""


@pytest.fixture(autouse=True)
def order() -> Iterator[None]:
    yield
    _emulated.set_thread_order("forward")


def bfloat16(values: F32) -> NDArray[np.uint16]:
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def stored(values: F32, kind: str) -> tuple[NDArray[Any], F32]:
    """As a network leaves them, and what they are then."""
    if kind == "float32":
        return values, values
    if kind == "float16":
        half = values.astype(np.float16)
        return half, half.astype(np.float32)
    bits = bfloat16(values)
    return bits, (bits.astype(np.uint32) << 16).view(np.float32)


@dataclass
class Job:
    """What `compose` makes a picture of, and what the CPU makes of it."""

    planes: F32
    crop: U8
    corner: tuple[int, int]
    rect: Rect = field(default=Rect(0, 0, 1, 1))
    pixels: U8 | None = None
    keep: U8 | None = None
    share: float = 1.0
    kind: str = "float32"
    channels_last: bool = False
    mode: int = COMPOSED
    held: list[NDArray[Any]] = field(default_factory=list)

    def row(self) -> list[int]:
        planes, _ = stored(self.planes, self.kind)
        if self.channels_last:
            planes = np.ascontiguousarray(planes.transpose(1, 2, 0)).transpose(2, 0, 1)
        (left, top), rect = self.corner, self.rect
        self.out = np.full(self.expected().shape, 0x5A, np.uint8)
        self.held = [planes]
        return [
            planes.ctypes.data, TYPES.index(self.kind), *(s // planes.itemsize
            for s in planes.strides), *planes.shape[1:], left, top, self.crop.ctypes.data,
            len(self.crop), int(np.float32(self.share).view(np.uint32)), _address(self.pixels),
            self.out.shape[1], self.out.shape[0],
            rect.x | rect.y << 32, rect.width | rect.height << 32,
            _address(self.keep), self.out.ctypes.data, self.mode,
        ]  # fmt: skip

    def expected(self) -> U8:
        made = _native.region_output(np.ascontiguousarray(stored(self.planes, self.kind)[1]))
        (left, top), (height, width) = self.corner, made.shape[:2]
        if self.share != 1:  # as the CPU's backend does it
            own = self.crop[top : top + height, left : left + width].astype(np.float32)
            made = np.rint(own + np.float32(self.share) * (made - own)).astype(np.uint8)
        if self.mode == REGION:
            return made
        if self.mode == SQUARE:
            crop = self.crop.copy()
            crop[top : top + height, left : left + width] = made
            return crop[REGION_BORDER:-REGION_BORDER, REGION_BORDER:-REGION_BORDER]
        frame = np.zeros((self.rect.height, self.rect.width, 3), np.uint8)
        frame = frame if self.pixels is None else self.pixels.copy()
        linear = self.mode == BILINEAR
        _native.compose(self.crop, made, self.corner, frame, self.rect.corners, self.keep, linear)
        return frame


def _address(array: U8 | None) -> int:
    return 0 if array is None else array.ctypes.data


def check(jobs: list[Job]) -> None:
    _emulated.compose(np.array([job.row() for job in jobs], np.int64))
    for job in jobs:
        assert np.array_equal(job.out, job.expected())


@st.composite
def a_job(draw: st.DrawFn) -> Job:
    side = draw(st.integers(9, 70))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    height, width = draw(st.integers(1, side)), draw(st.integers(1, side))
    corner = draw(st.integers(0, side - width)), draw(st.integers(0, side - height))
    planes = rng.uniform(-0.1, 1.1, (3, height, width)).astype(np.float32)
    planes.flat[rng.integers(0, planes.size, 4)] = [np.nan, np.inf, -np.inf, 1.0]
    job = Job(
        planes,
        rng.integers(0, 256, (side, side, 3), np.uint8),
        corner,
        share=draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1, width=32)),
        kind=draw(st.sampled_from(TYPES)),
        channels_last=draw(st.booleans()),
        mode=draw(st.sampled_from([COMPOSED, BILINEAR, SQUARE, REGION])),
    )
    if job.mode in (COMPOSED, BILINEAR):
        wide, high = (draw(st.integers(1, 120) | st.just(side)) for _ in range(2))
        right, below = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        x, y = draw(st.integers(0, right)), draw(st.integers(0, below))
        alone = draw(st.integers(0, 3)) == 0
        if alone:
            job.rect = Rect(0, 0, wide, high)
        else:
            job.rect = Rect(x, y, wide, high)
            job.pixels = rng.integers(0, 256, (high + below, wide + right, 3), np.uint8)
            if draw(st.booleans()):
                job.keep = rng.integers(0, 2, (high, wide), np.uint8)
    return job


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(st.lists(a_job(), min_size=1, max_size=3), st.sampled_from(ORDERS))
def test_bytes_are_the_cpus(jobs: list[Job], order: str) -> None:
    _emulated.set_thread_order(order)
    check(jobs)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (699, 2), (328, 328), (328, 200), (512, 640)])
def test_rectangles_much_smaller_and_larger_than_the_crop(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (size[0] + 5, size[1] + 3, 3), np.uint8)
    planes = rng.random((3, 320, 320), np.float32)
    crop = rng.integers(0, 256, (328, 328, 3), np.uint8)
    rect = Rect(2, 4, size[1], size[0])
    how: dict[str, Any] = {"kind": "float16", "channels_last": True}
    check([Job(planes, crop, (4, 4), rect, pixels, mode=m, **how) for m in (COMPOSED, BILINEAR)])


def test_more_jobs_than_a_launch_takes() -> None:
    rng = np.random.default_rng(6)
    crop = rng.integers(0, 256, (24, 24, 3), np.uint8)
    check([
        Job(rng.random((3, 16, 16), np.float32), crop, (4, 4), Rect(0, 0, 9 + k % 40, 7 + k))
        for k in range(70)
    ])  # fmt: skip


def test_every_value_of_half_precision() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        for kind, values in (
            ("float16", bits.view(np.float16).astype(np.float32)),
            ("bfloat16", (bits.astype(np.uint32) << 16).view(np.float32)),
        ):
            planes = np.broadcast_to(values.reshape(256, 256), (3, 256, 256)).copy()
            raw = np.broadcast_to(bits.reshape(256, 256), (3, 256, 256)).copy()
            job = Job(planes, np.zeros((264, 264, 3), np.uint8), (4, 4), mode=REGION)
            row = job.row()
            row[0], row[1] = raw.ctypes.data, TYPES.index(kind)
            _emulated.compose(np.array([row]))
            assert np.array_equal(job.out, job.expected())


def test_frames_of_the_demo_avatar() -> None:
    rng = np.random.default_rng(7)
    jobs = []
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        window = package.manifest.window
        assert window is not None
        corner = REGION_BORDER + window.x, REGION_BORDER + window.y
        for index, share in ((0, 1.0), (31, 0.4)):
            planes = rng.random((3, window.height, window.width), np.float32)
            x1, y1, x2, y2 = package.rect(index).corners
            picture = package.picture(index)
            part = picture[y1 - 9 : y2 + 3, x1 - 5 : x2 + 8].copy()
            rect = Rect(5, 9, x2 - x1, y2 - y1)
            jobs.append(
                Job(planes, package.crop(index, picture), corner, rect, part,
                    package.mask(index), share, "bfloat16", channels_last=True)
            )  # fmt: skip
    check(jobs)


def as_bytes(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.uint16 if values.itemsize == 2 else np.uint32)


@pytest.mark.parametrize("side", [24, 41, 136])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("border", "half"), [(REGION_BORDER, False), (0, True)])
def test_network_input(side: int, channels_last: bool, order: str, border: int, half: bool) -> None:
    _emulated.set_thread_order(order)
    rng = np.random.default_rng(8)
    crops = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(3)]
    r = side - 2 * border
    for dtype in (np.float32, np.float16):
        shape = (3, r, r, 6) if channels_last else (3, 6, r, r)
        memory = np.full(shape, 7, dtype)
        out = memory.transpose(0, 3, 1, 2) if channels_last else memory
        addresses = np.array([c.ctypes.data for c in crops])
        _emulated.region_input(addresses, border, out, half=half)
        for made, crop in zip(out, crops, strict=True):
            expected = _native.region_input(crop, border, half).astype(dtype)
            assert np.array_equal(as_bytes(made.copy()), as_bytes(expected))


def test_network_input_of_many_crops_in_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    crop = np.random.default_rng(9).integers(0, 256, (24, 24, 3), np.uint8)
    out = torch.full((300, 6, 16, 16), 7, dtype=torch.bfloat16)  # more than one launch takes
    _emulated.region_input(np.full(300, crop.ctypes.data), 4, out)
    expected = torch.from_numpy(_native.region_input(crop, 4)).to(torch.bfloat16)
    assert torch.equal(out, expected.expand_as(out))


def test_misuse_is_refused() -> None:
    rng = np.random.default_rng(10)

    def job(**other: Any) -> Job:
        given: dict[str, Any] = {
            "planes": rng.random((3, 16, 16), np.float32),
            "crop": np.zeros((24, 24, 3), np.uint8),
            "corner": (4, 4),
            "rect": Rect(2, 3, 10, 10),
            "pixels": np.zeros((20, 30, 3), np.uint8),
        }
        return Job(**(given | other))

    def refused(why: str, place: int, value: int, **other: Any) -> None:
        row = job(**other).row()
        row[place] = value
        with pytest.raises(ValueError, match=why):
            _emulated.compose(np.array([row]))

    refused("planes", 0, 0)
    refused("type", 1, 3)
    refused("stride", 3, 1 << 40)
    refused("within the crop", 5, 21)
    refused("within the crop", 7, 9)
    refused("within the crop", 8, -1)
    refused("crop: no address", 9, 0)
    refused("share", 11, int(np.float32(1.5).view(np.uint32)))
    refused("share", 11, int(np.float32(np.nan).view(np.uint32)))
    refused("without pixels", 12, 0)
    refused("part: its sides", 13, 0)
    refused("within the part", 15, 21 | 3 << 32)
    refused("within the part", 15, 2 | 11 << 32)
    refused("within the part", 16, 0 | 10 << 32)
    refused("out: no address", 18, 0)
    refused("mode", 19, 4)
    refused("less its border", 13, 17, mode=SQUARE)
    refused("region's size", 14, 15, mode=REGION)
    with pytest.raises(ValueError, match="jobs x 20"):
        _emulated.compose(np.zeros((2, 19), np.int64))
    with pytest.raises(ValueError, match="no address"):
        _emulated.region_input(np.zeros(1, np.int64), 4, np.zeros((1, 6, 16, 16), np.float32))
    with pytest.raises(ValueError, match="crops x 6 x R x R"):
        _emulated.region_input(np.zeros(1, np.int64), 4, np.zeros((1, 6, 16, 17), np.float32))
    with pytest.raises(ValueError, match="16 or more"):
        _emulated.region_input(np.zeros(1, np.int64), 4, np.zeros((1, 6, 8, 8), np.float32))
