# SPDX-License-Identifier: Apache-2.0
"""An avatar's frames, brought onto a device: the same bytes as the CPU backend composes from."""

from __future__ import annotations

import functools
import io
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import small_manifest

from lipsync_fast import _native
from lipsync_fast.arrays import U8
from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.avatars.package import MODELS, AvatarPackage
from lipsync_fast.avatars.writer import AvatarWriter
from lipsync_fast.engine.splice import FrameEncoder, Variant
from lipsync_fast.errors import AvatarFormatError
from lipsync_fast.geometry import Rect

torch = pytest.importorskip("torch", reason="the extra train is not installed")
from lipsync_fast.engine.backends.cuda import loader  # noqa: E402

pytestmark = pytest.mark.slow

WIDTH, HEIGHT = 331, 257
COUNT = loader.WORTH_A_PIPELINE + 3
REASON = loader.without_dali()
needs_dali = pytest.mark.skipif(REASON is not None, reason=f"{REASON} (the extra test brings it)")


def picture(seed: int) -> U8:
    """A smooth picture with some noise: every frequency, nothing clipped everywhere."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (17, 23, 3), np.uint8))
    smooth = np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-30, 30, smooth.shape), 0, 255).astype(np.uint8)


def face(seed: int) -> Rect:
    rng = np.random.default_rng(seed)
    x, y = int(rng.integers(0, 60)), int(rng.integers(0, 40))
    return Rect(x, y, int(rng.integers(120, 260)), int(rng.integers(100, 210)))


def coded(kind: str, seed: int) -> bytes:
    """A picture's file, of one of the kinds that packages may hold."""
    image, out = Image.fromarray(picture(seed)), io.BytesIO()
    if kind == "png":
        image.save(out, "PNG")
    elif kind == "turned":  # nobody looks at that tag
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(out, "JPEG", exif=exif, quality=90)
    elif kind == "grey":
        image.convert("L").save(out, "JPEG")
    else:
        sampling, progressive = int(kind[0]), kind.endswith("p")
        image.save(out, "JPEG", quality=83, subsampling=sampling, progressive=progressive)
    return out.getvalue()


KINDS = ("0", "1", "2", "0p", "2p", "turned", "grey")


def write(dest: Path, files: Callable[[int], bytes], *, regions: bool = False) -> Path:
    """A package whose exact pictures are these files; every second frame has a mask."""
    manifest = small_manifest((WIDTH, HEIGHT), name="made", synthetic=True, licence="CC0-1.0")
    with AvatarWriter(dest, manifest, keep_regions=regions) as writer:
        for k in range(COUNT):
            rect = face(k)
            mask = np.random.default_rng(k).random((rect.height, rect.width)) < 0.2
            source = files(k)
            pixels = decode(source, (WIDTH, HEIGHT), "a test")
            writer.add_frame(pixels, rect, mask if k % 2 else None, source)
        for name in MODELS:
            writer.add_model(name, b"none")
        return writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A package whose pictures are of a kind; all tests read the same one."""

    @functools.cache
    def written(kind: str) -> Path:
        return write(tmp_path_factory.mktemp("made") / kind, lambda k: coded(kind, k))

    return written


def near(package: AvatarPackage, index: int) -> Rect:
    """A part that holds the face and a bit more."""
    x1, y1, x2, y2 = package.rect(index).corners
    left, top, right, bottom = (
        max(0, x1 - 5),
        max(0, y1 - 16),
        min(WIDTH, x2 + 7),
        min(HEIGHT, y2 + 1),
    )
    return Rect.from_corners(left, top, right, bottom)


def check(
    package: AvatarPackage, faces: list[loader.DeviceFace], part: Callable[[int], Rect]
) -> None:
    """Every byte is that of the CPU's face."""
    for found in faces:
        left, top, right, bottom = part(found.index).corners
        x1, y1, x2, y2 = package.rect(found.index).corners
        own = package.picture(found.index)
        assert found.rect.corners == (x1 - left, y1 - top, x2 - left, y2 - top)
        np.testing.assert_array_equal(found.pixels.numpy(), own[top:bottom, left:right])
        np.testing.assert_array_equal(found.crop.numpy(), package.crop(found.index))
        keep = package.mask(found.index)
        assert (keep is None) == (found.keep is None)
        if keep is not None and found.keep is not None:
            np.testing.assert_array_equal(found.keep.numpy(), keep)
        held = (found.pixels, found.crop, *(() if found.keep is None else (found.keep,)))
        assert all(t.is_contiguous() and t.dtype == torch.uint8 for t in held)
        assert found.nbytes == sum(t.numel() for t in held)


def test_dali_is_installed_in_ci() -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("DALI is made for Linux on x86-64")
    if not os.environ.get("CI"):
        pytest.skip("outside of CI, DALI may be missing")
    assert REASON is None


@pytest.mark.parametrize("decoding", ["pillow", pytest.param("exact", marks=needs_dali)])
@pytest.mark.parametrize("kind", KINDS)
def test_faces_are_those_of_the_cpu(
    made: Callable[[str], Path], kind: str, decoding: loader.Decoding
) -> None:
    with AvatarPackage.open(made(kind)) as package:
        indexes = [*range(COUNT)][::-1]

        def part(index: int) -> Rect:
            return near(package, index)

        batches = list(
            loader.load_frames(package, "cpu", indexes, part, batch=4, decoding=decoding)
        )
        assert [len(batch) for batch in batches] == [4, 4, COUNT - 8]
        faces = [face for batch in batches for face in batch]
        assert [face.index for face in faces] == indexes
        check(package, faces, part)


@needs_dali
def test_dali_decodes_the_jpegs(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with AvatarPackage.open(made("2")) as package:
        twin = [package.picture(k) for k in range(COUNT)]

        def refuse(index: int) -> U8:
            raise AssertionError(f"frame {index} was decoded by Pillow")

        monkeypatch.setattr(package, "picture", refuse)
        (faces,) = loader.load_frames(package, "cpu", range(COUNT))
        for found, pixels in zip(faces, twin, strict=True):
            np.testing.assert_array_equal(found.pixels.numpy(), pixels)


@pytest.mark.parametrize("regions", [False, True])
def test_files_that_are_no_jpegs_and_stored_crops(tmp_path: Path, regions: bool) -> None:
    path = write(tmp_path / "made", lambda k: coded("png" if k == 3 else "2", k), regions=regions)
    with AvatarPackage.open(path) as package:
        (faces,) = loader.load_frames(package, "cpu", range(COUNT))
        check(package, faces, lambda _: Rect(0, 0, WIDTH, HEIGHT))
        faces[0].crop.zero_()  # its own memory: the package's is mapped and read-only
        assert package.crop(0).any()


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=needs_dali)])
def test_the_demo_avatar(count: int) -> None:
    encoder = FrameEncoder()
    with AvatarPackage.open(AvatarLibrary().find("demo")) as package:
        variant = Variant(package.manifest.jpeg.quality)

        def part(index: int) -> Rect:
            return encoder.part(package, index, variant)

        (faces,) = loader.load_frames(package, "cpu", range(40, 40 + count), part)
        check(package, faces, part)


@pytest.mark.parametrize("decoding", ["pillow", pytest.param("exact", marks=needs_dali)])
def test_a_damaged_frame_is_named(
    made: Callable[[str], Path], tmp_path: Path, decoding: loader.Decoding
) -> None:
    path = Path(shutil.copytree(made("2"), tmp_path / "made"))
    offsets = np.load(path / "pictures.npy")
    with (path / "pictures.bin").open("r+b") as file:
        file.seek(int(offsets[6]) - 2000)  # the end of frame 5
        file.write(bytes(2000))
    with AvatarPackage.open(path) as package:
        batches = loader.load_frames(package, "cpu", range(COUNT), batch=4, decoding=decoding)
        check(package, next(batches), lambda _: Rect(0, 0, WIDTH, HEIGHT))
        with pytest.raises(AvatarFormatError, match="frame 5"):
            next(batches)
        others = [k for k in range(COUNT) if k != 5]
        found = [
            f for b in loader.load_frames(package, "cpu", others, decoding=decoding) for f in b
        ]
        check(package, found, lambda _: Rect(0, 0, WIDTH, HEIGHT))


def test_what_cannot_be_loaded(made: Callable[[str], Path]) -> None:
    with AvatarPackage.open(made("2")) as package:
        x1, y1, x2, y2 = package.rect(1).corners
        with pytest.raises(ValueError, match="without its face"):
            next(
                loader.load_frames(
                    package, "cpu", [1], lambda _: Rect.from_corners(x1 + 1, y1, x2, y2)
                )
            )
        with pytest.raises(ValueError, match="not in it"):
            next(loader.load_frames(package, "cpu", [1], lambda _: Rect(0, 0, WIDTH + 1, HEIGHT)))
        with pytest.raises(IndexError, match=f"{COUNT}"):
            next(loader.load_frames(package, "cpu", [COUNT]))
        with pytest.raises(RuntimeError):
            next(loader.load_frames(package, "cpu", [1], decoding="device"))
        assert list(loader.load_frames(package, "cpu", [])) == []


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    target=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    seed=st.integers(0, 1 << 30),
    extreme=st.booleans(),
)
def test_resizing_gives_the_bytes_of_the_native_code(
    source: tuple[int, int], target: tuple[int, int], seed: int, extreme: bool
) -> None:
    made = np.random.default_rng(seed).integers(0, 256, (*source, 3), np.uint8)
    if extreme:  # overshoots on both sides
        made = (made > 127).astype(np.uint8) * 255
    found = loader.resize_cubic(torch.from_numpy(made), *target)
    np.testing.assert_array_equal(found.numpy(), _native.resize_cubic(made, *target))
