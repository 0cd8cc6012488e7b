# SPDX-License-Identifier: Apache-2.0
"""The manifest of an avatar package: what it holds, whose it is, and how it is played."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from lipsync_fast.avatars import limits

FORMAT = "lipsync-avatar"
FORMAT_VERSION = 1
REGION_BORDER = 4
"""Pixels between the crop's edge and the generated region, on each side (crop = region + 8)."""

_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor or turns a line's direction; line breaks and tabs may be."""

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Side = Annotated[int, msgspec.Meta(ge=16, le=16_384)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]


class AudioWindow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which 16 audio feature vectors a frame sees: padded rows [i - before, i + after).

    ``before + after`` is 16. The reference has 8 and 8, a look-ahead of 452.5 ms.
    """

    before: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8
    after: Annotated[int, msgspec.Meta(ge=0, le=16)] = 8

    @property
    def lookahead_samples(self) -> int:
        """Samples at 16 kHz after a frame's start that its picture depends on (reference: 7240).

        Padded row p is feature p - 1, so the last feature seen is i + after - 2. Feature j ends
        with mel row int(3.2 j) + 15, whose window ends 400 samples after 200 (int(3.2 j) + 15).
        """
        return 640 * (self.after - 2) + 200 * 15 + 400


class FrameJpeg(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the avatar's frames are pre-encoded."""

    quality: Annotated[int, msgspec.Meta(ge=1, le=100)] = 85
    subsampling: Literal["4:2:0"] = "4:2:0"
    restart_interval: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 4
    """Minimum coded units (16 x 16 pixels) between two restart markers."""


class Window(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part of the region that the network makes; the rest stays as the avatar's frame has it.

    Pixels of the region: columns x .. x + width - 1, rows y .. y + height - 1.
    """

    x: Annotated[int, msgspec.Meta(ge=0, le=1024)]
    y: Annotated[int, msgspec.Meta(ge=0, le=1024)]
    width: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    height: Annotated[int, msgspec.Meta(ge=1, le=1024)]


class FileEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member of the package: its size in bytes and its SHA-256 in hexadecimal."""

    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an avatar package says of itself (``manifest.json``)."""

    format: Literal["lipsync-avatar"] = "lipsync-avatar"
    format_version: int = FORMAT_VERSION
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    family: Literal["synctalk2d"] = "synctalk2d"
    width: Annotated[int, msgspec.Meta(ge=2, le=256)]
    """Base width of the U-Net (the reference: 32)."""
    region: Annotated[int, msgspec.Meta(ge=224, le=1024)]
    """Side of the generated square in pixels (the reference: 320)."""
    window: Window | None = None
    """The part of that square that is made at all; all of it by default."""
    audio: AudioWindow = AudioWindow()
    fps: Literal[25] = 25
    frame_width: Side
    frame_height: Side
    frame_count: Count
    loop: Literal["pingpong", "cycle"] = "pingpong"
    jpeg: FrameJpeg = FrameJpeg()
    synthetic: bool = False
    """True for a synthetic person (IPTC trainedAlgorithmicMedia), False over a real one."""
    licence: Text = ""
    provenance: Text = ""
    consent: Text = ""
    files: Annotated[dict[str, FileEntry], msgspec.Meta(max_length=limits.MEMBERS)] = {}

    def __post_init__(self) -> None:
        w = self.window
        if w is not None and max(w.x + w.width, w.y + w.height) > self.region:
            raise ValueError(f"window {w.x},{w.y},{w.width},{w.height} leaves the region")
        if self.frame_width * self.frame_height > limits.FRAME_PIXELS:
            raise ValueError(
                f"frame_width {self.frame_width} and frame_height {self.frame_height} are more"
                f" than {limits.FRAME_PIXELS} pixels together"
            )
        for name in ("licence", "provenance", "consent"):
            text: str = getattr(self, name)
            if bad := _UNSEEN.search(text):
                raise ValueError(f"{name} holds the control character {bad[0]!a}")

    @property
    def crop(self) -> int:
        """Side of the square that a face crop is resized to (the reference: 328)."""
        return self.region + 2 * REGION_BORDER

    def picture_index(self, position: int, start: int = 0) -> int:
        """The avatar frame played at ``position`` (frames since the start), beginning at ``start``.

        There and back without repeating the ends: 0 1 … n-1 n-2 … 1 0 1 … for ``pingpong``.
        """
        n, p = self.frame_count, position + start
        if self.loop == "cycle" or n == 1:
            return p % n
        p %= 2 * n - 2
        return p if p < n else 2 * n - 2 - p
