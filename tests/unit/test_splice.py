# SPDX-License-Identifier: Apache-2.0
"""Spliced frames are, byte for byte, what encoding the whole frame gives."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import small_manifest

from lipsync_fast import _native
from lipsync_fast.arrays import U8
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import FrameJpeg, Window
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.backends.base import Coded, Encode
from lipsync_fast.engine.changes import changing, cut, reached
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import scaled_size
from lipsync_fast.provenance import CREATOR_MARK, jpeg_with_xmp, xmp_packet


def noise(rng: np.random.Generator, height: int, width: int) -> U8:
    """Not so wild that every block looks the same to the encoder."""
    coarse = rng.integers(0, 256, (-(-height // 5), -(-width // 7), 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(5, 0).repeat(7, 1)[:height, :width])


class Scene:
    """A package's face in memory (frames of any size), and the backend's way to compose."""

    def __init__(
        self,
        seed: int,
        size: tuple[int, int],
        rect: Rect,
        jpeg: FrameJpeg,
        window: Window | None,
        masked: bool,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.frame_size, self._rect = size, rect
        self.manifest = small_manifest(size, name="scene", window=window, jpeg=jpeg)
        self.own = noise(self.rng, size[1], size[0])
        self._mask = (
            (self.rng.random((rect.height, rect.width)) < 0.9).astype(np.uint8) if masked else None
        )
        self._crop = _native.resize_cubic(self.own[rect.slices], 232, 232)

    def rect(self, index: int) -> Rect:
        return self._rect

    def crop(self, index: int, picture: U8) -> U8:
        return self._crop

    def mask(self, index: int) -> U8 | None:
        return self._mask

    def picture(self, index: int) -> U8:
        return self.own

    def spoken(self) -> U8:
        """A frame with a new mouth."""
        w = self.manifest.window or Window(0, 0, 224, 224)
        made = self.rng.integers(0, 256, (w.height, w.width, 3), np.uint8)
        frame = self.own.copy()
        _native.compose(self._crop, made, (4 + w.x, 4 + w.y), frame, self._rect.corners, self._mask)
        return frame


def coded(part: U8, encode: Encode) -> Coded:
    """What a backend that encodes makes of a part."""
    x1, y1, x2, y2 = encode.box.corners
    how = FrameJpeg(quality=encode.quality, restart_interval=encode.interval)
    jpeg = encode_frame(part[y1:y2, x1:x2], how)
    at = [int(v) for v in segment_offsets(jpeg)]
    ends = [*(end - 2 for end in at[1:-1]), at[-1]]
    pieces = [jpeg[a:b] for a, b in zip(at, ends, strict=False)]
    offsets = [0]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return Coded(memoryview(b"".join(pieces)), offsets)


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    width, height = draw(st.integers(16, 400)), draw(st.integers(16, 300))

    def side(most: int) -> tuple[int, int]:
        """Edges and corners as often as places between them."""
        first = draw(st.just(0) | st.integers(0, most - 1))
        return first, draw(st.just(most) | st.integers(first + 1, most))

    (x1, x2), (y1, y2) = side(width), side(height)
    window = draw(
        st.none()
        | st.builds(
            Window,
            st.integers(0, 100),
            st.integers(0, 100),
            st.integers(1, 124),
            st.integers(1, 124),
        )
    )
    jpeg = FrameJpeg(
        quality=draw(st.integers(1, 100)),
        restart_interval=draw(st.integers(1, 8) | st.sampled_from([13, 25, 100, 1000, 65_535])),
    )
    return Scene(
        draw(st.integers(0, 99)),
        (width, height),
        Rect.from_corners(x1, y1, x2, y2),
        jpeg,
        window,
        draw(st.booleans()),
    )


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(scene=scenes(), quality=st.none() | st.integers(1, 100))
def test_splicing_gives_the_bytes_of_the_whole_frame(scene: Any, quality: int | None) -> None:
    m, encoder = scene.manifest, FrameEncoder()
    variant = Variant(quality or m.jpeg.quality)
    how = msgspec.structs.replace(m.jpeg, quality=variant.quality)
    for _ in range(3):
        image = scene.spoken()
        wanted = jpeg_with_xmp(encode_frame(image, how), xmp_packet(m.synthetic))
        x1, y1, x2, y2 = encoder.part(scene, 0, variant).corners
        part = image[y1:y2, x1:x2]
        assert encoder.frame(scene, 0, variant, part) == wanted
        encode = encoder.place(scene, 0, variant).encode(how)
        if encode is not None:
            assert encoder.frame(scene, 0, variant, coded(part, encode)) == wanted


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(scene=scenes(), width=st.integers(16, 399), quality=st.sampled_from([30, 95, 100]))
def test_a_scaled_frame_is_the_whole_one_scaled(scene: Any, width: int, quality: int) -> None:
    """But for a level of rounding: no seam, and nothing of an earlier mouth."""
    encoder, variant = FrameEncoder(), Variant(quality, width)
    x1, y1, x2, y2 = encoder.part(scene, 0, variant).corners
    size = scaled_size(scene.frame_size, width)
    for _ in range(2):
        image = scene.spoken()
        got = encoder.frame(scene, 0, variant, image[y1:y2, x1:x2])
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        how = msgspec.structs.replace(scene.manifest.jpeg, quality=quality)
        wanted = pixels(encode_frame(scaled, how)).astype(int)
        different = np.abs(pixels(got).astype(int) - wanted)
        assert different.mean() < (0.5 if quality == 100 else 1.5)
        if quality == 100:
            assert different.max() <= 10


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(scene=scenes())
def test_nothing_changes_outside_of_what_can_change(scene: Any) -> None:
    box = changing(scene, 0)
    first, second = scene.spoken(), scene.spoken()
    differs = np.argwhere((first != second).any(2))
    if box is None:
        assert len(differs) == 0
        return
    x1, y1, x2, y2 = box.corners
    rx1, ry1, rx2, ry2 = scene.rect(0).corners
    assert rx1 <= x1 < x2 <= rx2
    assert ry1 <= y1 < y2 <= ry2
    if len(differs):
        assert (differs >= (y1, x1)).all()
        assert (differs < (y2, x2)).all()


@given(
    size=st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
    interval=st.integers(1, 200),
    data=st.data(),
)
def test_a_cut_holds_its_box_and_whole_segments(
    size: tuple[int, int], interval: int, data: st.DataObject
) -> None:
    x1, y1 = (data.draw(st.integers(0, side - 1)) for side in size)
    x2, y2 = data.draw(st.integers(x1 + 1, size[0])), data.draw(st.integers(y1 + 1, size[1]))
    made = cut(size, interval, Rect.from_corners(x1, y1, x2, y2))
    left, top, right, bottom = made.box.corners
    assert 0 <= left <= x1 < x2 <= right <= size[0]
    assert 0 <= top <= y1 < y2 <= bottom <= size[1]
    numbers = [f + k for f in made.firsts for k in range(made.run)]
    assert numbers == sorted(set(numbers))
    assert numbers[-1] < made.count
    across = -(-size[0] // 16)
    units = {
        row * across + column
        for row in range(top // 16, -(-bottom // 16))
        for column in range(left // 16, -(-right // 16))
    }
    last = across * -(-size[1] // 16)
    in_segments = {k * interval + u for k in numbers for u in range(interval)}
    assert units == {u for u in in_segments if u < last}


def test_only_the_part_that_changes_is_encoded() -> None:
    """At 720p, a face of 264 pixels: a small share of the frame's segments."""
    made = cut((1280, 720), 4, Rect(514, 273, 264, 264))
    assert made.box == Rect(512, 272, 320, 272)
    assert len(made.firsts) * made.run == 85 < made.count // 10


def test_reached_is_what_the_resize_shows() -> None:
    """Against the resize itself: outputs that change when an input does."""
    for source, target in ((232, 232), (232, 96), (232, 400), (40, 33), (16, 100)):
        grey = np.full((source, source, 3), 128, np.uint8)
        for first, end in ((0, 1), (5, 9), (source - 3, source), (0, source)):
            changed = grey.copy()
            changed[:, first:end] = 255
            before = _native.resize_cubic(grey, target, target)
            after = _native.resize_cubic(changed, target, target)
            seen = np.flatnonzero((before != after).any((0, 2)))
            a, b = reached(first, end, source, target)
            if len(seen):
                assert a <= seen[0] <= seen[-1] < b
            slack = 3 * max(1, -(-target // source))
            assert b - a <= len(seen) + 2 * slack + 4


@pytest.fixture(scope="module")
def package(tiny_avatar: Path) -> Iterator[AvatarPackage]:
    with AvatarPackage.open(tiny_avatar) as opened:
        yield opened


def pixels(jpeg: bytes) -> U8:
    with Image.open(io.BytesIO(jpeg)) as image:
        return np.asarray(image.convert("RGB"))


def test_own_pictures_say_how_they_were_made(package: AvatarPackage) -> None:
    encoder, own = FrameEncoder(), package.manifest.jpeg.quality
    for jpeg in (
        encoder.original(package, 2, Variant(own)),
        encoder.original(package, 2, Variant(40)),
        encoder.original(package, 2, Variant(own, 80)),
        encoder.own_mouth(package, 2, own),
        encoder.own_region(package, 2, own),
    ):
        assert jpeg.count(CREATOR_MARK) == 1
        segment_offsets(jpeg)


def test_own_frames_are_the_packages(package: AvatarPackage) -> None:
    encoder, own = FrameEncoder(), package.manifest.jpeg.quality
    stored = package.frame_jpeg(1)
    assert encoder.original(package, 1, Variant(own)) == jpeg_with_xmp(
        bytes(stored), xmp_packet(True)
    )
    assert sum(encoder.cache_bytes.values()) == 0
    assert np.array_equal(pixels(encoder.original(package, 1, Variant(own))), pixels(bytes(stored)))


def test_own_pictures_are_encoded_once(package: AvatarPackage) -> None:
    encoder = FrameEncoder()
    for make in (
        lambda: encoder.original(package, 3, Variant(33)),
        lambda: encoder.original(package, 3, Variant(85, 100)),
        lambda: encoder.own_mouth(package, 3, 50),
        lambda: encoder.own_region(package, 3, 50),
    ):
        assert make() is make()
    assert encoder.cache_bytes["encoded own pictures"] > 0
    encoder.forget(package)
    assert sum(encoder.cache_bytes.values()) == 0


def test_sizes(package: AvatarPackage) -> None:
    encoder = FrameEncoder()
    image = package.picture(0)
    for variant, shape in (
        (Variant(80, 100), (120, 100, 3)),
        (Variant(80, 500), (192, 160, 3)),
        (Variant(80), (192, 160, 3)),
    ):
        x1, y1, x2, y2 = encoder.part(package, 0, variant).corners
        assert pixels(encoder.frame(package, 0, variant, image[y1:y2, x1:x2])).shape == shape
    assert scaled_size((160, 192), 100) == (100, 120)
    assert pixels(encoder.original(package, 0, Variant(80, 100))).shape == (120, 100, 3)
    assert pixels(encoder.alone(package, image[:40, :50], 80)).shape == (40, 50, 3)
    assert pixels(encoder.own_mouth(package, 0, 80)).shape == (96, 96, 3)
    assert pixels(encoder.own_region(package, 0, 80)).shape == (224, 224, 3)


def test_the_cache_is_bounded(package: AvatarPackage) -> None:
    encoder = FrameEncoder(limit=100_000)
    image = package.picture(0)
    x1, y1, x2, y2 = encoder.part(package, 0, Variant(1)).corners
    for quality in range(1, 101):
        encoder.frame(package, 0, Variant(quality), image[y1:y2, x1:x2])
        encoder.original(package, 0, Variant(quality))
    assert 0 < sum(encoder.cache_bytes.values()) <= 100_000
