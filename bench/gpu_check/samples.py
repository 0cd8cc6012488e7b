# SPDX-License-Identifier: Apache-2.0
"""Random inputs of the kernels, and what the CPU makes of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gpu_check.target import Target
from lipsync_fast import _native
from lipsync_fast.arrays import F32, U8
from lipsync_fast.avatars.jpeg import encode_frame, segment_offsets
from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.families.synctalk2d import REGION_BORDER
from lipsync_fast.geometry import Rect

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ROW, WINDOW = 200, 3800
"""Samples between mel rows, and those that a window of 16 of them reads."""
POISON = 0x5A
COMPOSED, SQUARE, BILINEAR = 0, 1, 3


def generator() -> np.random.Generator:
    """Fresh numbers, other ones in every run."""
    return np.random.default_rng()


# ---------------------------------------------------------------- sound
@dataclass
class Windows:
    """Mel windows of several sounds that lie one behind the other.

    Attributes:
        pcm: their samples, int16.
        table: a row for each window: offset, low, high, previous.
        expected: N x 80 x 16, by the CPU.
    """

    pcm: NDArray[np.int16]
    table: NDArray[np.int32]
    expected: F32

    @classmethod
    def random(cls, rng: np.random.Generator, count: int) -> Windows:
        """Windows at random places of as many sounds, loud and quiet ones, some at their ends."""
        pieces, rows, expected, at = [], [], [], 0
        for _ in range(count):
            length = int(rng.integers(WINDOW + 1, 3 * WINDOW))
            level = 10.0 ** rng.uniform(-3, -0.3)
            sound = np.clip(rng.standard_normal(length) * level * 32768, -32768, 32767)
            pcm = sound.astype(np.int16)
            first = int(rng.integers(0, (length + 400) // ROW - 14))
            begin = first * ROW - 400
            rows.append((at + begin, at + max(0, begin), at + length, int(begin > 0)))
            floats = pcm.astype(np.float32) / 32768
            expected.append(_native.mel_rows_at(floats, 0, first, 16).T)
            pieces.append(pcm)
            at += length
        table = np.array(rows, np.int32)
        return cls(np.concatenate(pieces), table, np.stack(expected))

    def run(self, target: Target, kind: str = "fp32") -> torch.Tensor:
        """By the kernel."""
        self.bind(target, kind)()
        target.wait()
        return self.out

    def bind(self, target: Target, kind: str) -> Any:
        """A call that does it again."""
        self._pcm, self._table = target.put(self.pcm), target.put(self.table)
        shape = (len(self.table), 1, 80, 16)
        self.out = torch.full(shape, float("nan"), dtype=DTYPES[kind], device=target.where)
        return lambda: target.kernels.mel(self._pcm, self._table, self.out, target.stream)


# ---------------------------------------------------------------- composing
@dataclass
class Composition:
    """A picture to compose.

    Attributes:
        planes: 3 x H x W float32, BGR, of which the device has those of ``kind``.
        corner: left and top of the planes in ``crop``.
    """

    planes: F32
    crop: U8
    corner: tuple[int, int]
    pixels: U8
    rect: Rect
    keep: U8 | None
    share: float
    kind: str
    mode: int
    _held: list[torch.Tensor] = field(default_factory=list)

    @classmethod
    def random(cls, rng: np.random.Generator, side: int, face: int, part: int) -> Composition:
        """A crop of ``side`` pixels, pasted into ``face`` of a part of ``part`` pixels."""
        region = side - 2 * REGION_BORDER
        square = rng.random() < 0.2
        height, width = (region, region) if square else rng.integers(region // 2, region + 1, 2)
        left, top = (int(rng.integers(REGION_BORDER, side - REGION_BORDER - n + 1)) for n in
                     (width, height))  # fmt: skip
        x, y = (int(v) for v in rng.integers(0, part - face + 1, 2))
        keep = (rng.random((face, face)) < 0.2).astype(np.uint8)
        return cls(
            rng.uniform(-0.02, 1.02, (3, int(height), int(width))).astype(np.float32),
            rng.integers(0, 256, (side, side, 3), np.uint8),
            (left, top),
            rng.integers(0, 256, (part, part, 3), np.uint8),
            Rect(x, y, face, face),
            None if rng.random() < 0.5 else keep,
            1.0 if rng.random() < 0.7 else float(np.float32(rng.random())),
            str(rng.choice(list(DTYPES))),
            SQUARE if square else int(rng.choice([COMPOSED, BILINEAR])),
        )

    def row(self, target: Target) -> list[int]:
        """Put it on the device; its row of the table of jobs."""
        planes = torch.from_numpy(self.planes).to(target.where, DTYPES[self.kind])
        crop, pixels = target.put(self.crop), target.put(self.pixels)
        keep = None if self.keep is None else target.put(self.keep)
        size = len(self.crop) - 2 * REGION_BORDER if self.mode == SQUARE else len(self.pixels)
        self.out = torch.full((size, size, 3), POISON, dtype=torch.uint8, device=target.where)
        self._held = [planes, crop, pixels, *([] if keep is None else [keep])]
        return [
            planes.data_ptr(), list(DTYPES).index(self.kind), *planes.stride(), *planes.shape[1:],
            *self.corner, crop.data_ptr(), len(self.crop),
            int(np.float32(self.share).view(np.uint32)), pixels.data_ptr(), size, size,
            self.rect.x | self.rect.y << 32, self.rect.width | self.rect.height << 32,
            0 if keep is None else keep.data_ptr(),
            self.out.data_ptr(), self.mode,
        ]  # fmt: skip

    def expected(self) -> U8:
        """As the CPU's backend makes it of the same planes."""
        stored = torch.from_numpy(self.planes).to(DTYPES[self.kind]).float().numpy()
        made = _native.region_output(stored)
        (left, top), (height, width) = self.corner, made.shape[:2]
        if self.share != 1:
            own = self.crop[top : top + height, left : left + width].astype(np.float32)
            made = np.rint(own + np.float32(self.share) * (made - own)).astype(np.uint8)
        if self.mode == SQUARE:
            crop = self.crop.copy()
            crop[top : top + height, left : left + width] = made
            inner = slice(REGION_BORDER, -REGION_BORDER)
            return crop[inner, inner]
        frame = self.pixels.copy()
        linear = self.mode == BILINEAR
        _native.compose(self.crop, made, self.corner, frame, self.rect.corners, self.keep, linear)
        return frame


def compose(target: Target, jobs: Sequence[Composition]) -> list[U8]:
    """All of them in one launch."""
    table = np.array([job.row(target) for job in jobs], np.int64)
    target.kernels.compose(table, target.stream)
    target.wait()
    return [job.out.cpu().numpy() for job in jobs]


# ---------------------------------------------------------------- JPEG
def smooth(rng: np.random.Generator, height: int, width: int) -> U8:
    """A picture as pictures are: mostly low frequencies, some noise."""
    coarse = rng.integers(0, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(picture).astype(np.int16) + rng.integers(-6, 7, (height, width, 3))
    made: U8 = np.clip(noisy, 0, 255).astype(np.uint8)
    return made


class Pictures:
    """Pictures to code in one launch, each with quality and restart interval."""

    def __init__(self, target: Target, wanted: Sequence[tuple[U8, int, int]]) -> None:
        self.target, self.wanted = target, wanted
        k = target.kernels
        qualities = sorted({quality for _, quality, _ in wanted})
        self.tables = target.put(np.stack([k.quant_tables(q) for q in qualities]))
        self.table = np.zeros((len(wanted), 8), np.int64)
        self._held, self._places = [], []
        segments = at = 0
        for row, (image, quality, interval) in zip(self.table, wanted, strict=True):
            pixels = target.put(image)
            self._held.append(pixels)
            height, width = image.shape[:2]
            units = -(-width // 16) * -(-height // 16)
            count, slot = -(-units // interval), k.jpeg_slot_bytes(min(units, interval))
            row[:] = (pixels.data_ptr(), 3 * width, width, height, interval, segments,
                      qualities.index(quality), at)  # fmt: skip
            self._places.append((segments, count, at, slot))
            segments, at = segments + count, at + count * slot
        self.segments = segments
        self.out = torch.full((at,), POISON, dtype=torch.uint8, device=target.where)
        self.sizes = torch.full((segments,), -1, dtype=torch.int32, device=target.where)
        self.packed = torch.full((at,), POISON, dtype=torch.uint8, device=target.where)
        self.offsets = torch.full((segments + 1,), -1, dtype=torch.int32, device=target.where)

    def code(self) -> None:
        """Into slots."""
        t = self.target
        t.kernels.jpeg(self.table, self.tables, self.out, self.sizes, t.stream)

    def gather(self) -> None:
        """From slots to packed bytes."""
        t = self.target
        t.kernels.jpeg_gather(self.table, self.out, self.sizes, self.packed, self.offsets, t.stream)

    def slots(self) -> list[bytes]:
        """Every segment's bytes, from its slot; what lies behind them must be untouched.

        Raises:
            AssertionError: it is not.
        """
        self.target.wait()
        out, sizes = self.out.cpu().numpy(), self.sizes.cpu().numpy()
        found = []
        for first, count, at, slot in self._places:
            for k in range(count):
                own, size = out[at + k * slot :][:slot], int(sizes[first + k])
                assert 0 < size <= slot, f"segment of {size} bytes in a slot of {slot}"
                assert np.all(own[size:] == POISON), "written beyond a segment"
                found.append(own[:size].tobytes())
        return found

    def gathered(self) -> list[bytes]:
        """Every segment's bytes, as they were packed."""
        self.target.wait()
        at, packed = self.offsets.cpu().numpy(), self.packed.cpu().numpy()
        return [packed[a:b].tobytes() for a, b in itertools.pairwise(at)]

    def expected(self) -> list[bytes]:
        """By libjpeg-turbo."""
        found = []
        for image, quality, interval in self.wanted:
            jpeg = encode_frame(image, FrameJpeg(quality, restart_interval=interval))
            at = [int(v) for v in segment_offsets(jpeg)]
            ends = [*(v - 2 for v in at[1:-1]), at[-1]]
            found += [jpeg[a:b] for a, b in zip(at[:-1], ends, strict=True)]
        return found
