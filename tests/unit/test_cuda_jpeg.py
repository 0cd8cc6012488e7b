# SPDX-License-Identifier: Apache-2.0
"""The JPEG kernel, run on the host: the bytes of libjpeg-turbo, segment by segment."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lipsync_fast import _emulated
from lipsync_fast.arrays import U8
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.splice import FrameEncoder, Variant

ORDERS = ("forward", "backward", "shuffled")
UNTOUCHED = 0x5A


@pytest.fixture(autouse=True)
def order() -> Iterator[None]:
    yield
    _emulated.set_thread_order("forward")


class Wanted(NamedTuple):
    image: U8
    quality: int = 90
    interval: int = 4

    @property
    def units(self) -> int:
        height, width = self.image.shape[:2]
        return -(-width // 16) * -(-height // 16)

    @property
    def count(self) -> int:
        return -(-self.units // self.interval)

    @property
    def slot(self) -> int:
        return _emulated.jpeg_slot_bytes(min(self.units, self.interval))


def expected(wanted: Wanted) -> list[bytes]:
    how = FrameJpeg(wanted.quality, restart_interval=wanted.interval)
    jpeg = encode_frame(np.ascontiguousarray(wanted.image), how)
    at = [int(v) for v in segment_offsets(jpeg)]
    ends = [*(v - 2 for v in at[1:-1]), at[-1]]
    return [jpeg[a:b] for a, b in zip(at[:-1], ends, strict=True)]


class Batch:
    """Pictures of one call, with what it needs and makes."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self.wanted = wanted
        qualities = sorted({w.quality for w in wanted})
        self.tables = np.stack([_emulated.quant_tables(q) for q in qualities])
        self.pictures = np.zeros((len(wanted), 8), np.int64)
        segments = at = 0
        for row, w in zip(self.pictures, wanted, strict=True):
            height, width = w.image.shape[:2]
            row[:] = (w.image.ctypes.data, w.image.strides[0], width, height, w.interval,
                      segments, qualities.index(w.quality), at)  # fmt: skip
            segments, at = segments + w.count, at + w.count * w.slot
        self.out = np.full(at, UNTOUCHED, np.uint8)
        self.sizes = np.full(segments, -1, np.int32)

    def coded(self) -> list[list[bytes]]:
        _emulated.jpeg(self.pictures, self.tables, self.out, self.sizes)
        found = []
        for row, w in zip(self.pictures, self.wanted, strict=True):
            slots = self.out[row[7] :][: w.count * w.slot].reshape(w.count, w.slot)
            sizes = self.sizes[row[5] :][: w.count]
            assert all(np.all(s[n:] == UNTOUCHED) for s, n in zip(slots, sizes, strict=True))
            found.append([s[:n].tobytes() for s, n in zip(slots, sizes, strict=True)])
        return found


def picture(kind: str, height: int, width: int, seed: int = 0) -> U8:
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), np.uint8)
    if kind == "black and white":  # the largest coefficients there are
        return rng.integers(0, 2, (height, width, 3), np.uint8) * np.uint8(255)
    coarse = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


kinds = st.sampled_from(["noise", "black and white", "smooth"])
wanted_pictures = st.builds(
    lambda kind, height, width, seed, quality, interval: Wanted(
        picture(kind, height, width, seed), quality, interval
    ),
    kinds, st.integers(1, 70), st.integers(1, 100), st.integers(0, 999),
    st.sampled_from([1, 10, 50, 75, 92, 99, 100]) | st.integers(1, 100),
    st.sampled_from([1, 2, 3, 4, 5, 7, 8, 13, 64, 65_535]),
)  # fmt: skip


def test_tables_are_libjpegs() -> None:
    for quality in range(1, 101):
        out = io.BytesIO()
        Image.new("RGB", (8, 8)).save(out, "JPEG", quality=quality)
        tables = Image.open(out).quantization  # type: ignore[attr-defined]
        assert _emulated.quant_tables(quality).tolist() == [list(tables[0]), list(tables[1])]


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(st.lists(wanted_pictures, min_size=1, max_size=3), st.sampled_from(ORDERS))
def test_bytes_are_libjpeg_turbos(wanted: list[Wanted], order: str) -> None:
    _emulated.set_thread_order(order)
    assert Batch(wanted).coded() == [expected(w) for w in wanted]


@pytest.mark.parametrize("interval", [1, 4, 6, 64, 65_535])
@pytest.mark.parametrize("size", [(320, 320), (171, 262), (16, 16), (17, 33)])
def test_larger_pictures(size: tuple[int, int], interval: int) -> None:
    for kind, quality in (("smooth", 92), ("noise", 100)):
        wanted = Wanted(picture(kind, *size), quality, interval)
        assert Batch([wanted]).coded() == [expected(wanted)]


@pytest.mark.parametrize("pattern", ["dc", "half"])
def test_extremes_stay_within_their_slots(pattern: str) -> None:
    tile = np.zeros((16, 16, 3), np.uint8)
    if pattern == "dc":  # the mean jumps from one end to the other
        tile[:8, :8] = tile[8:, 8:] = 255
    else:  # coefficients of the largest size
        tile[:, ::4] = tile[:, 3::4] = 255
    wanted = Wanted(np.tile(tile, (3, 5, 1)), 100, 4)
    assert Batch([wanted]).coded() == [expected(wanted)]


def test_a_part_of_a_picture_by_its_stride() -> None:
    whole = picture("smooth", 90, 120)
    wanted = Wanted(whole[13:61, 21:103], 85, 3)
    assert Batch([wanted]).coded() == [expected(wanted)]


@pytest.mark.parametrize("order", ORDERS)
def test_gathered_segments_of_many_pictures(order: str) -> None:
    _emulated.set_thread_order(order)
    sizes = itertools.cycle([(40, 50), (16, 16), (33, 90)])
    wanted = [
        Wanted(picture("smooth", *next(sizes), seed=k), 60 + k % 3 * 20, 1 + k % 5)
        for k in range(70)  # more than one launch takes
    ]
    batch = Batch(wanted)
    batch.coded()
    whole = b"".join(itertools.chain(*(expected(w) for w in wanted)))
    lengths = [len(s) for w in wanted for s in expected(w)]
    for room in (len(whole) + 40, len(whole), len(whole) - 21, 0):
        packed = _aligned(room + 32)
        packed[:] = UNTOUCHED
        offsets = np.full(len(lengths) + 3, -1, np.int32)
        _emulated.jpeg_gather(batch.pictures, batch.out, batch.sizes, packed[:room], offsets)
        assert offsets[: len(lengths) + 1].tolist() == [0, *itertools.accumulate(lengths)]
        assert np.all(offsets[len(lengths) + 1 :] == -1)
        assert packed[: min(room, len(whole))].tobytes() == whole[:room]
        assert np.all(packed[min(room, len(whole)) :] == UNTOUCHED)


def _aligned(size: int) -> U8:
    room = np.empty(size + 16, np.uint8)
    first = -room.ctypes.data % 16
    return room[first : first + size]


def test_frames_of_the_demo_avatar_spliced_from_coded_segments() -> None:
    encoder = FrameEncoder()
    rng = np.random.default_rng(3)
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        m = package.manifest
        for index, quality in ((0, m.jpeg.quality), (7, 70), (42, 100)):
            variant = Variant(quality)
            x1, y1, x2, y2 = encoder.part(package, index, variant).corners
            part = package.picture(index)[y1:y2, x1:x2].copy()
            part[100:160, 60:200] = rng.integers(0, 256, (60, 140, 3), np.uint8)
            once = encoder._encoded(package, index, variant)
            cut = once.place.cut
            assert cut is not None
            wanted = Wanted(once.place.pixels(part), quality, m.jpeg.restart_interval)
            coded = iter(Batch([wanted]).coded()[0])
            pieces = [bytes(once.kept[0])]
            for first, after in zip(cut.firsts, once.kept[1:], strict=True):
                for number in range(first, first + cut.run):
                    pieces.append(next(coded))
                    if number < cut.count - 1:
                        pieces.append(bytes([0xFF, 0xD0 + number % 8]))
                pieces.append(bytes(after))
            assert next(coded, None) is None
            assert b"".join(pieces) == encoder.frame(package, index, variant, part)


def test_misuse_is_refused() -> None:
    wanted = Wanted(picture("noise", 40, 50))

    def refused(why: str, field: int, value: int) -> None:
        batch = Batch([wanted])
        batch.pictures[0, field] = value
        with pytest.raises(ValueError, match=why):
            batch.coded()

    refused("no address", 0, 0)
    refused("stride", 1, 149)
    refused("sides", 2, 0)
    refused("sides", 3, 65_501)
    refused("restart interval", 4, 0)
    refused("restart interval", 4, 65_536)
    refused("beyond sizes", 5, 1)
    refused("beyond sizes", 5, -1)
    refused("no such table", 6, 1)
    refused("beyond out", 7, 1)
    batch = Batch([wanted])
    with pytest.raises(ValueError, match="pictures x 8"):
        _emulated.jpeg(batch.pictures[:, :7].copy(), batch.tables, batch.out, batch.sizes)
    with pytest.raises(ValueError, match="uint16"):
        _emulated.jpeg(batch.pictures, batch.tables.astype(np.int32), batch.out, batch.sizes)
    batch.coded()
    with pytest.raises(ValueError, match="multiple of 16"):
        _emulated.jpeg_gather(
            batch.pictures, batch.out, batch.sizes, _aligned(99)[1:], np.zeros(9, np.int32)
        )
    with pytest.raises(ValueError, match="offsets"):
        _emulated.jpeg_gather(
            batch.pictures, batch.out, batch.sizes, _aligned(99), np.zeros(3, np.int32)
        )
    for quality in (0, 101):
        with pytest.raises(ValueError, match="quality"):
            _emulated.quant_tables(quality)
    with pytest.raises(ValueError, match="units"):
        _emulated.jpeg_slot_bytes(0)
