# SPDX-License-Identifier: Apache-2.0
"""The least that the device must do for a frame, counted: what its times are to be judged by.

Bytes are those that must cross the device's memory once; operations those that no way around is
known for (a multiply-add is one). Where a count hangs on the picture (how many coefficients are
not 0), it is left out: so these are floors, not estimates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.changes import Place

TILE_ROWS, MOST_LINES = 16, 64
"""Rows that a block of the compose kernel makes, and the source rows that it keeps for them."""
UNIT = 16
PER_PIXEL = 9
"""Products of one pixel's conversion to luma and chroma."""
PER_TRANSFORM = 12 + 32
"""Products and sums of eight numbers' transform."""
PER_COEFFICIENT = 2
"""A sum and a product to quantise it."""
MEL_SAMPLES, MEL_ROWS, MEL_BANDS = 3800, 16, 80


@dataclass(frozen=True)
class Work:
    """What one kernel does for one frame: bytes read and written, operations."""

    read: int
    written: int
    operations: int

    @property
    def moved(self) -> int:
        """Bytes in both directions."""
        return self.read + self.written


def mel(products_of_row: int, width: int = 2) -> Work:
    """A mel window of int16 samples.

    Args:
        products_of_row: as ``mel_products()`` of the kernels' module says.
        width: bytes of a number of the result.
    """
    return Work(2 * MEL_SAMPLES, width * MEL_ROWS * MEL_BANDS, MEL_ROWS * products_of_row)


def region_input(region: int, width: int = 2) -> Work:
    """A crop to six planes; once for each of an avatar's frames."""
    pixels = region * region
    return Work(3 * pixels, 6 * width * pixels, 3 * pixels)


def compose(
    region: tuple[int, int],
    side: int,
    rect: tuple[int, int],
    part: tuple[int, int],
    kept: float | None = None,
    width: int = 4,
) -> Work:
    """A network's output into a part of the avatar's frame.

    Args:
        region, rect, part: height and width in pixels.
        side: of the crop.
        kept: share of the rectangle that a mask keeps; None without a mask.
        width: bytes of a number of the network's output.
    """
    (rows, columns), (high, wide), pixels = region, rect, part[0] * part[1]
    own = side * side - rows * columns
    outside = pixels - high * wide + round((kept or 0) * high * wide)
    mask = 0 if kept is None else high * wide
    tiles = math.ceil(high / TILE_ROWS)
    lines = tiles * min(MOST_LINES, math.ceil(TILE_ROWS * side / high) + 3)
    return Work(
        3 * width * rows * columns + 3 * own + 3 * outside + mask,
        3 * pixels,
        3 * 4 * wide * (lines + high) + 3 * rows * columns,
    )


def jpeg(size: tuple[int, int], coded: int) -> Work:
    """A picture (height, width) to ``coded`` bytes in their slots."""
    units = math.ceil(size[0] / UNIT) * math.ceil(size[1] / UNIT)
    each = UNIT * UNIT * PER_PIXEL + 6 * 16 * PER_TRANSFORM + 6 * 64 * PER_COEFFICIENT
    return Work(3 * size[0] * size[1], coded, units * each)


def gather(coded: int) -> Work:
    """Coded bytes out of their slots, one segment behind the other."""
    return Work(coded, coded, 0)


def multiply_adds(model: bytes | memoryview, inputs: Mapping[str, tuple[int, ...]]) -> int:
    """The multiply-adds of all convolutions of a package's graph, for one frame.

    Args:
        inputs: the shape of each, without the batch.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from lipsync_fast.engine.backends.cuda.graph_net import GraphNet

    net = GraphNet(model).to("meta")
    given = [torch.empty(1, *inputs[name], device="meta") for name in net.inputs]
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net(*given)
    return int(counter.get_total_flops()) // 2


def networks(package: AvatarPackage) -> dict[str, int]:
    """Multiply-adds of an avatar's networks: ``audio_encoder``, ``image``, ``decoder``.

    A frame needs the decoder, and the audio encoder once; ``image`` is kept for each of the
    avatar's frames.
    """
    m = package.manifest
    inputs: dict[str, Mapping[str, tuple[int, ...]]] = {
        "audio_encoder": {"mel": (1, MEL_BANDS, MEL_ROWS)},
        "image": {"image": (6, m.region, m.region)},
        "decoder": {**m.levels, "audio": m.rules.audio_shape},
    }
    return {name: multiply_adds(package.model(name), given) for name, given in inputs.items()}


def kernels(
    package: AvatarPackage, index: int, coded: int, products_of_row: int
) -> dict[str, Work]:
    """The kernels of a whole frame, at the avatar's own size and quality.

    Args:
        index: of the avatar's frame that lies under it.
        coded: bytes that its changing segments take.
        products_of_row: see ``mel``.
    """
    m = package.manifest
    place, mask = Place.of(package, index, package.frame_size), package.mask(index)
    rect, part = package.rect(index), place.part
    _, *region = m.made
    found = {
        "mel": mel(products_of_row),
        "compose": compose(
            (region[0], region[1]),
            m.crop,
            (rect.height, rect.width),
            (part.height, part.width),
            None if mask is None else float(mask.mean()),
        ),
    }
    if place.cut is not None:
        box = place.cut.box
        found["jpeg"], found["gather"] = jpeg((box.height, box.width), coded), gather(coded)
    return found
