# SPDX-License-Identifier: Apache-2.0
"""What the engine, the importer and the packages ask a family of networks (numbers, no torch).

A family is a way from a face and its sound to the face that speaks: which vectors of the sound a
frame sees, how the face is cut out and put back, which networks there are and of what shapes. All
have the same three graphs in a package: the audio encoder (a mel window to 512 numbers), the image
half (which knows nothing of the sound, so it runs once for each of the avatar's frames), and the
decoder (what the image half made, and the sound, to the picture). docs/families.md says how to add
one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.arrays import U8
from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted.limits import Need

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CropRule:
    """How a face becomes the image half's input, and the decoder's picture the face again.

    Attributes:
        border: pixels between the crop's edge and the generated region, on each side.
        linear: resized bilinear (OpenCV's INTER_LINEAR, exactly), else bicubic (INTER_CUBIC).
        half: the lower half is hidden from the networks, and the six channels begin with the face
            without it; else the mouth is, and they begin with the whole face.
    """

    border: int
    linear: bool
    half: bool

    def resized(self, picture: U8, height: int, width: int) -> U8:
        """H x W x 3 uint8 to ``height`` x ``width`` x 3."""
        resize = _native.resize_linear if self.linear else _native.resize_cubic
        return resize(picture, height, width)

    def inner(self, crop: U8) -> U8:
        """The region within a crop, C x C x 3; a view."""
        end = len(crop) - self.border
        return crop[self.border : end, self.border : end]

    def image_input(self, crop: U8) -> NDArray[np.float32]:
        """A crop, C x C x 3 uint8 RGB, to 6 x R x R float32 BGR in 0..1."""
        return _native.region_input(crop, self.border, self.half)

    def masked(self, region: U8) -> U8:
        """A copy of a region, R x R x 3, with what the networks do not see black."""
        seen = region.copy()
        if self.half:
            seen[len(seen) // 2 :] = 0
        else:
            seen[5:-10, 5:-5] = 0
        return seen

    def compose(
        self,
        crop: U8,
        region: U8,
        corner: tuple[int, int],
        frame: U8,
        rect: Rect,
        keep: U8 | None,
    ) -> None:
        """Put ``region`` into ``crop`` at ``corner``, and that into ``rect`` of ``frame``.

        Args:
            crop, region, frame: H x W x 3 uint8 RGB; ``frame`` is written.
            corner: left and top.
            rect: where the face lies in ``frame``.
            keep: rectangle sized, 1 where the frame's pixel stays; None for nowhere.

        Raises:
            ValueError: one does not lie within the other.
        """
        _native.compose(crop, region, corner, frame, rect.corners, keep, self.linear)

    @property
    def reach(self) -> int:
        """Inputs on the farther side that an output of the resizing sees."""
        return 1 if self.linear else 2


AUDIO_ENCODER = Need(tensor=65_000, live=130_000, multiplications=120_000_000, weights=2_900_000)
"""What the audio encoder needs for one mel window; it is the same in all families."""


class Models(NamedTuple):
    """Networks as a package has them: ONNX bytes, and the sizes that they are made for."""

    width: int
    region: int
    audio_encoder: bytes
    image: bytes
    decoder: bytes


class Family(ABC):
    """A family of networks; see the module. Each has one instance, in ``FAMILIES``.

    Attributes:
        name: in the manifest.
        crop: how faces are cut out and put back.
        audio: the window that an imported avatar has.
        audio_shape: of the decoder's input ``audio``: its vectors, row-major.
        fused: the decoder's last stages are those that ``engine.backends.decoder`` has natively.
    """

    name: ClassVar[str]
    crop: ClassVar[CropRule]
    audio: ClassVar[AudioWindow]
    audio_shape: ClassVar[Shape]
    fused: ClassVar[bool] = False

    @abstractmethod
    def check(self, width: int, region: int, window: Rect | None, audio: AudioWindow) -> None:
        """Hold what a manifest says against what there can be.

        Raises:
            ValueError: says what was expected.
        """

    @abstractmethod
    def levels(self, width: int, region: int, window: Rect | None) -> dict[str, Shape]:
        """The image half's outputs in their order: channels, height and width by name."""

    def output(self, region: int, window: Rect | None) -> Shape:
        """Channels, height and width of the decoder's output ``region``."""
        return (3, window.height, window.width) if window else (3, region, region)

    @abstractmethod
    def need(self, network: str, width: int, region: int) -> Need:
        """About what the family's own network of a size needs, as ``onnx_io.check`` counts it.

        Args:
            network: "audio_encoder", "image" or "decoder".
        """

    @abstractmethod
    def peak(self, width: int, region: int) -> int:
        """Roughly how many numbers the decoder holds at its widest, for one frame."""
