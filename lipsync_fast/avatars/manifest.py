# SPDX-License-Identifier: Apache-2.0
"""The manifest of an avatar package: what it holds, whose it is, and how it is played."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.families import FAMILIES, CropRule, Family, FamilyName
from lipsync_fast.geometry import Rect
from lipsync_fast.untrusted import limits

FORMAT = "lipsync-avatar"
FORMAT_VERSION = 1

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What moves a terminal's cursor or turns a line's direction; line breaks and tabs may be."""

Count = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Side = Annotated[int, msgspec.Meta(ge=16, le=16_384)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]


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


Share = Annotated[float, msgspec.Meta(ge=0, le=1000)]


class Student(msgspec.Struct, frozen=True, kw_only=True):
    """Whose student an avatar is, and how it did against its teacher.

    It was tried on frames and sound that it had not learnt from, over the part of the teacher's
    region that sound moves.

    Attributes:
        teacher: its name.
        teacher_manifest: SHA-256 of its manifest, in hexadecimal.
        teacher_width, teacher_region: of its networks.
        difference: mean absolute difference of a pixel, in grey levels.
        r: correlation of the mouths' openings, over pictures that are held still.
        swing: how far mouths open and shut, as a part of the teacher's.
        sharpness: variance of the Laplacian, as a part of the teacher's.
        frames_per_s, teacher_frames_per_s: of both on one machine's processors, measured in turns.
        machine: which that was.
    """

    teacher: Annotated[str, msgspec.Meta(pattern=NAME)]
    teacher_manifest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    teacher_width: Annotated[int, msgspec.Meta(ge=2, le=256)]
    teacher_region: Annotated[int, msgspec.Meta(ge=32, le=1024)]
    difference: Annotated[float, msgspec.Meta(ge=0, le=255)] = 0.0
    r: Annotated[float, msgspec.Meta(ge=-1, le=1)] = 0.0
    swing: Share = 0.0
    sharpness: Share = 0.0
    frames_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    teacher_frames_per_s: Annotated[float, msgspec.Meta(ge=0, le=1e6)] = 0.0
    machine: Annotated[str, msgspec.Meta(max_length=200)] = ""

    @property
    def times(self) -> float:
        """How many times as fast it is."""
        return self.frames_per_s / max(1e-9, self.teacher_frames_per_s)


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an avatar package says of itself (``manifest.json``)."""

    format: Literal["lipsync-avatar"] = "lipsync-avatar"
    format_version: int = FORMAT_VERSION
    name: Annotated[str, msgspec.Meta(pattern=NAME)]
    family: FamilyName = "synctalk2d"
    width: Annotated[int, msgspec.Meta(ge=2, le=256)]
    """Base width of the networks (SyncTalk_2D's: 32, wav2lip's: 16)."""
    region: Annotated[int, msgspec.Meta(ge=32, le=1024)]
    """Side of the generated square in pixels (SyncTalk_2D's: 320, wav2lip's: 96 or 256)."""
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
    student: Student | msgspec.UnsetType = msgspec.UNSET
    """Of an avatar that another one taught. Not written where there is none."""
    files: Annotated[dict[str, FileEntry], msgspec.Meta(max_length=limits.MEMBERS)] = {}

    def __post_init__(self) -> None:
        self.rules.check(self.width, self.region, self.window_rect, self.audio)
        w = self.window
        if w is not None and max(w.x + w.width, w.y + w.height) > self.region:
            raise ValueError(f"window {w.x},{w.y},{w.width},{w.height} leaves the region")
        if self.frame_width * self.frame_height > limits.FRAME_PIXELS:
            raise ValueError(
                f"frame_width {self.frame_width} and frame_height {self.frame_height} are more"
                f" than {limits.FRAME_PIXELS} pixels together"
            )
        texts = {name: str(getattr(self, name)) for name in ("licence", "provenance", "consent")}
        if self.student is not msgspec.UNSET:
            texts["machine"] = self.student.machine
        for name, text in texts.items():
            if bad := _UNSEEN.search(text):
                raise ValueError(f"{name} holds the control character {bad[0]!a}")

    @property
    def rules(self) -> Family:
        """What its family says of networks and pictures."""
        return FAMILIES[self.family]

    @property
    def crop_rule(self) -> CropRule:
        """How its faces are cut out and put back."""
        return self.rules.crop

    @property
    def crop(self) -> int:
        """Side of the square that a face crop is resized to (SyncTalk_2D's: 328)."""
        return self.region + 2 * self.crop_rule.border

    @property
    def window_rect(self) -> Rect | None:
        """``window``, for arithmetic."""
        w = self.window
        return None if w is None else Rect(w.x, w.y, w.width, w.height)

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of what the decoder makes, in the crop."""
        border, w = self.crop_rule.border, self.window
        return (border + w.x, border + w.y) if w else (border, border)

    @property
    def levels(self) -> dict[str, tuple[int, ...]]:
        """The image half's outputs: channels, height and width by name."""
        return self.rules.levels(self.width, self.region, self.window_rect)

    @property
    def made(self) -> tuple[int, ...]:
        """Channels, height and width of what the decoder makes."""
        return self.rules.output(self.region, self.window_rect)

    def avatar_frame(self, loop_position: int, start: int = 0) -> int:
        """Index of the avatar's frame at a position of its loop, which begins at ``start``.

        There and back without repeating the ends: 0 1 … n-1 n-2 … 1 0 1 … for ``pingpong``.
        """
        n, p = self.frame_count, loop_position + start
        if self.loop == "cycle" or n == 1:
            return p % n
        p %= 2 * n - 2
        return p if p < n else 2 * n - 2 - p
