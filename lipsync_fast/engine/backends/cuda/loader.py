# SPDX-License-Identifier: Apache-2.0
"""An avatar's frames in device memory: what composing needs of each, as the CPU's ``Face`` has it.

    package ─► coded frames ─► decode ─► part of the frame ─► device ─► face crop, resized there
                               (DALI's threads, or Pillow)    (only the part crosses)

Which pixels must be the CPU's? All of them. Pixels of the part that no mouth covers are encoded
anew in every frame that speaks, and must meet the rest of the frame, which was encoded once from
what Pillow decoded; and of the crop, what lies around the generated region is pasted back. Only the
input of the image half would bear a grey level more or less, and it comes from the same crop. So
each step is chosen by what it does to the bytes (frames of the demo avatar, 1280 x 720; and in
tests, pictures of all samplings, progressive ones too):

    decoding, DALI's CPU operator    the bytes of Pillow: both are libjpeg-turbo with its exact DCT.
                                     Its fast DCT is off by up to 7 grey levels: not used.
    decoding, DALI's device operator nvJPEG has a DCT of its own; not yet measured on a GPU. Only
                                     where it is asked for (``decoding="device"``).
    resizing, DALI                   another cubic: up to 8 grey levels off (0.1 to 0.2 on average),
                                     23 with its antialiasing. Not used.
    resizing, here                   the integer arithmetic of csrc/image.hpp in torch, on the
                                     device: the same bytes.

DALI takes JPEGs of the kind that packages hold; a PNG, and a few frames for which a pipeline is not
worth its start, go through Pillow. A frame that DALI refuses is given to Pillow, which says why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from lipsync_fast.avatars.jpeg import check_header
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.geometry import Rect
from lipsync_fast.logs import get_logger
from lipsync_fast.machine import processors

log = get_logger("lipsync.engine")
BATCH = 16
"""Frames that are decoded at a time."""
WORTH_A_PIPELINE = 8
"""Frames from which on DALI is used: a pipeline's start takes as long as Pillow takes for these."""
MOST_THREADS = 8
Decoding = Literal["exact", "device", "pillow"]


@dataclass(frozen=True, slots=True)
class DeviceFace:
    """What composing needs of an avatar's frame, in device memory of its own.

    Attributes:
        index: which of the avatar's frames.
        pixels: the frame, or the part of it that was asked for; H x W x 3 uint8 RGB.
        crop: the face, resized to the network's square with its border; C x C x 3 uint8 RGB.
        keep: 1 where the original pixel stays, uint8, rectangle sized; None where all may change.
        rect: the face rectangle in ``pixels``.
    """

    index: int
    pixels: torch.Tensor
    crop: torch.Tensor
    keep: torch.Tensor | None
    rect: Rect

    @property
    def nbytes(self) -> int:
        """Bytes of device memory."""
        masked = 0 if self.keep is None else self.keep.nbytes
        return self.pixels.nbytes + self.crop.nbytes + masked


def without_dali() -> str | None:
    """Why DALI is not used here, in words; None where it is."""
    if (
        importlib.util.find_spec("nvidia") is None
        or importlib.util.find_spec("nvidia.dali") is None
    ):
        return "nvidia-dali is not installed"
    return None


def load_frames(
    package: AvatarPackage,
    device: torch.device | str,
    indexes: Sequence[int],
    part: Callable[[int], Rect] | None = None,
    *,
    batch: int = BATCH,
    decoding: Decoding = "exact",
) -> Iterator[list[DeviceFace]]:
    """Bring frames onto a device, some at a time; in any thread, each with streams of its own.

    Args:
        package: the avatar.
        device: of torch.
        indexes: which of its frames.
        part: of a frame, what is to be kept of it; it holds the face rectangle. None: all of it.
        batch: frames at a time: that many whole ones lie in memory.
        decoding: "exact": the CPU's bytes, by DALI where that is worth it; "device": by DALI on the
            device, some grey levels off; "pillow": by Pillow.

    Yields:
        Frames in the order of ``indexes``; the device has them when they are used on its current
        stream.

    Raises:
        AvatarFormatError: names the first frame that is damaged.
        IndexError: there is no such frame.
        ValueError: a part lies outside its frame, or does not hold the face.
        RuntimeError: ``decoding="device"`` and DALI or the device is not there.
    """
    where = torch.device(device)
    reason = without_dali()
    if decoding == "device" and (reason or where.type != "cuda"):
        raise RuntimeError(reason or f"decoding on the device: {where} is none for DALI")
    use_dali = reason is None and decoding != "pillow" and len(indexes) >= WORTH_A_PIPELINE
    decoder = _Dali(where, batch, decoding == "device") if use_dali else _Pillow(where)
    for at in range(0, len(indexes), batch):
        some = list(indexes[at : at + batch])
        parts = [_part(package, k, part) for k in some]
        pixels = decoder.parts(package, some, parts)
        yield [_face(package, *one) for one in zip(some, parts, pixels, strict=True)]


def _part(package: AvatarPackage, index: int, part: Callable[[int], Rect] | None) -> Rect:
    whole = Rect.of_size(package.frame_size)
    found = whole if part is None else part(index)
    if not (found in whole and package.rect(index) in found):
        raise ValueError(f"part {found} of frame {index}: not in it, or without its face")
    return found


def _face(package: AvatarPackage, index: int, part: Rect, pixels: torch.Tensor) -> DeviceFace:
    device, size = pixels.device, package.manifest.crop
    rect = package.rect(index).seen_from(part)
    stored = package.stored_crop(index)
    if stored is not None:
        crop = _upload(stored, device)
    else:
        resize = resize_linear if package.manifest.crop_rule.linear else resize_cubic
        crop = resize(pixels[rect.slices], size, size)
    keep = package.mask(index)
    return DeviceFace(index, pixels, crop, None if keep is None else _upload(keep, device), rect)


def _upload(array: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """A copy on the device, also where that is the host."""
    return torch.from_numpy(np.array(array)).to(device)


# ---------------------------------------------------------------- resizing
@lru_cache(64)
def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Source indices and weights in 1/2048, 4 x target each: ``cubic_taps`` of csrc/image.hpp."""
    f32, a = np.float32, np.float32(-0.75)
    at = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(f32)
    floor = np.floor(at)
    f = at - floor
    one, two, three, four, five, eight = (f32(v) for v in (1, 2, 3, 4, 5, 8))
    g = one - f
    c0 = ((a * (f + one) - five * a) * (f + one) + eight * a) * (f + one) - four * a
    c1 = ((a + two) * f - (a + three)) * f * f + one
    c2 = ((a + two) * g - (a + three)) * g * g + one
    weights = np.stack([c0, c1, c2, one - c0 - c1 - c2]) * f32(2048)
    indexes = floor.astype(np.int64) + np.arange(-1, 3)[:, None]
    return np.clip(indexes, 0, source - 1), np.rint(weights).astype(np.int32)


def resize_cubic(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize H x W x 3 uint8 where it lies: the bytes of ``_native.resize_cubic``."""

    def taps(source: int, target: int) -> tuple[torch.Tensor, torch.Tensor]:
        index, weight = (torch.from_numpy(v).to(picture.device) for v in _taps(source, target))
        return index, weight

    across, across_weight = taps(picture.shape[1], width)
    down, down_weight = taps(picture.shape[0], height)
    wide = picture.to(torch.int32)
    lines = sum(wide[:, across[k]] * across_weight[k, :, None] for k in range(4))
    assert isinstance(lines, torch.Tensor)
    total = sum(lines[down[k]] * down_weight[k, :, None, None] for k in range(4))
    assert isinstance(total, torch.Tensor)
    return ((total + (1 << 21)) >> 22).clamp(0, 255).to(torch.uint8)


@lru_cache(64)
def _linear_taps(
    source: int, target: int, rows: bool
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The same, 2 x target each: ``linear_taps_of`` of csrc/image_math.hpp."""
    scale = 1.0 / (target / source)
    at = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    floor = np.floor(at)
    f, first = at - floor, floor.astype(np.int64)
    if not rows:
        f = np.where((first < 0) | (first >= source - 1), np.float32(0), f)
    weights = np.stack([np.float32(1) - f, f]) * np.float32(2048)
    first = first if rows else np.clip(first, 0, source - 1)
    return np.clip(np.stack([first, first + 1]), 0, source - 1), np.rint(weights).astype(np.int32)


def resize_linear(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize H x W x 3 uint8 where it lies: the bytes of ``_native.resize_linear``."""
    if picture.shape[:2] == (height, width):
        return picture.clone()

    def taps(source: int, target: int, rows: bool) -> tuple[torch.Tensor, torch.Tensor]:
        index, weight = _linear_taps(source, target, rows)
        return torch.from_numpy(index).to(device), torch.from_numpy(weight).to(device)

    device, wide = picture.device, picture.to(torch.int32)
    across, across_weight = taps(picture.shape[1], width, False)
    down, down_weight = taps(picture.shape[0], height, True)
    left, right = (wide[:, across[k]] * across_weight[k, :, None] for k in range(2))
    lines = (left + right) >> 4
    above, below = ((lines[down[k]] * down_weight[k, :, None, None]) >> 16 for k in range(2))
    return ((above + below + 2) >> 2).to(torch.uint8)


# ---------------------------------------------------------------- decoding
class _Pillow:
    """Frame by frame on the host."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def parts(
        self, package: AvatarPackage, indexes: Sequence[int], parts: Sequence[Rect]
    ) -> list[torch.Tensor]:
        """The parts' pixels on the device."""
        found = []
        for index, part in zip(indexes, parts, strict=True):
            found.append(_upload(package.picture(index)[part.slices], self._device))
        return found


class _Dali:
    """Batches of frames by a pipeline's threads; without a GPU, in a pipeline without a device."""

    def __init__(self, device: torch.device, batch: int, on_device: bool) -> None:
        self._device, self._batch, self._on_device = device, batch, on_device
        self._pillow = _Pillow(device)
        self._pipeline: Any = None

    def parts(
        self, package: AvatarPackage, indexes: Sequence[int], parts: Sequence[Rect]
    ) -> list[torch.Tensor]:
        """The parts' pixels on the device."""
        coded = []
        for index in indexes:
            data = package.picture_file(index)
            check_header(data, package.frame_size, f"{package.path}: frame {index}")
            coded.append(np.frombuffer(data, np.uint8))
        if any(one[:2].tobytes() != b"\xff\xd8" for one in coded):
            return self._pillow.parts(package, indexes, parts)
        try:
            return self._decoded(coded, parts)
        except RuntimeError as error:  # its words name an operator, not a frame
            self._pipeline = None
            reason = str(error).splitlines()[0][:200]
            log.warning("DALI cannot decode frames", avatar=package.path, reason=reason)
            return self._pillow.parts(package, indexes, parts)

    def _decoded(
        self, coded: Sequence[NDArray[np.uint8]], parts: Sequence[Rect]
    ) -> list[torch.Tensor]:
        if self._pipeline is None:
            self._pipeline = self._built()
        pipeline = self._pipeline
        pipeline.feed_input("coded", list(coded))
        pipeline.feed_input("corner", [np.array([part.x, part.y], np.int32) for part in parts])
        pipeline.feed_input("size", [np.array(part.size, np.int32) for part in parts])
        (cut,) = pipeline.run()  # has ended on return
        # Copies: the pipeline's memory goes with it, and is counted by nobody.
        return [from_dlpack(cut[k]).clone() for k in range(len(coded))]

    def _built(self) -> Any:
        from nvidia.dali import Pipeline, fn, types

        gpu = self._device.type == "cuda"
        number = (self._device.index or 0) if gpu else None
        threads = min(MOST_THREADS, processors())
        pipeline = Pipeline(self._batch, threads, number, prefetch_queue_depth=1, exec_dynamic=True)
        with pipeline:
            coded, corner, size = (
                fn.external_source(name=name, dtype=dtype, ndim=1)
                for name, dtype in (
                    ("coded", types.UINT8),
                    ("corner", types.INT32),
                    ("size", types.INT32),
                )
            )
            pictures = fn.decoders.image(
                coded,
                device="mixed" if self._on_device else "cpu",
                output_type=types.RGB,
                adjust_orientation=False,  # Pillow does not look at it either
                use_fast_idct=False,
            )
            cut = fn.slice(pictures, corner, size, axes=(1, 0))
            pipeline.set_outputs(cut.gpu() if gpu and not self._on_device else cut)
        pipeline.build()
        return pipeline
