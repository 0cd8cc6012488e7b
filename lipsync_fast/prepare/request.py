# SPDX-License-Identifier: Apache-2.0
"""What is to be prepared and how, how far it is meanwhile, and what came of it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Literal

import msgspec

from lipsync_fast.avatars.manifest import FrameJpeg
from lipsync_fast.errors import PrepareError
from lipsync_fast.prepare.quality import Measures
from lipsync_fast.prepare.stabilise import BRIDGE

RESULT_VERSION = 3
"""Changes when the same video and options come to another result."""
QUALITY = 92
LONGEST_S = 600.0
LOOP_S = 60.0
IDLE_S = 60.0
"""So much of a clip to idle on is used at most."""
FILES = "files"
"""The detector's name where landmarks come from files."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNSEEN = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One video's task, as its process gets it.

    Attributes:
        video, landmarks, parsing: paths; landmarks in files, parsing maps as SyncTalk_2D has them.
        name: of the result, in the folder ``out``.
        idle: a path: a clip of the same person, silent, that the loop is taken from.
        start_s, longest_s: which part of the video.
        sound_late_ms: how much later than the picture the video's sound is; it is moved back.
        loop, loop_s: of the avatar: kind and greatest length.
        consent, licence, stated_by: as they go into the manifest.
    """

    video: str
    name: str
    out: str
    consent: str
    licence: str
    stated_by: str
    synthetic: bool = False
    detector: str = FILES
    detector_options: dict[str, str] = {}
    landmarks: str | None = None
    parsing: str | None = None
    idle: str | None = None
    start_s: float = 0.0
    longest_s: float = LONGEST_S
    sound_late_ms: float = 0.0
    bridge: int = BRIDGE
    loop: Literal["auto", "pingpong", "cycle"] = "auto"
    loop_s: float = LOOP_S
    jpeg: FrameJpeg = FrameJpeg(quality=QUALITY)
    force: bool = False

    @property
    def dest(self) -> Path:
        """The finished folder."""
        return Path(self.out) / self.name

    @property
    def work(self) -> Path:
        """The working folder."""
        return Path(self.out) / f".{self.name}.preparing"

    def part_key(self, video: str, landmarks: str, version: str) -> str:
        """A hash of all that changes what is in a part, and of where it is kept for the manifest.

        Args:
            video, landmarks: hashes of the inputs.
            version: the detector's.
        """
        options = json.dumps(sorted(self.detector_options.items()))
        how = f"{self.jpeg} {self.start_s} {self.longest_s}"
        text = "\0".join([video, landmarks, self.detector, options, version, how])
        return hashlib.sha256(f"{RESULT_VERSION}\0{text}".encode()).hexdigest()

    def of_idle(self) -> Request:
        """The task of looking at the clip to idle on."""
        assert self.idle is not None
        longest = min(self.longest_s, IDLE_S)
        return msgspec.structs.replace(self, video=self.idle, start_s=0.0, longest_s=longest)

    def key(self, part_key: str, parsing: str, idle: str = "") -> str:
        """A hash of all that changes the result but the day; ``idle``: the clip's hash."""
        rest = (
            self.name,
            Path(self.video).name,
            self.consent,
            self.licence,
            self.stated_by,
            self.synthetic,
            self.bridge,
            self.loop,
            self.loop_s,
            parsing,
            idle,
            Path(self.idle or "").name,
            *filter(None, [self.sound_late_ms]),  # what was prepared without it keeps its key
        )
        return hashlib.sha256(f"{part_key}\0{json.dumps(rest)}".encode()).hexdigest()


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """How far a video is; ``total`` 0 where that is not known."""

    stage: str
    done: int
    total: int


class Result(msgspec.Struct, frozen=True, kw_only=True, tag="result"):
    """A video that is prepared, in numbers; also what report.json holds.

    Attributes:
        seconds: of what is prepared, at 25 frames a second.
        seam: mean grey levels around the face where the loop joins, or turns.
        step: the same between two frames, the median.
        again: it was there already.
    """

    name: str
    path: str
    video: str
    frames: int
    width: int
    height: int
    seconds: float
    source_rate: float
    detector: str
    points: int
    bridged: int
    face: int
    """Median width of the face crop in pixels."""
    loop: str
    loop_first: int
    loop_count: int
    seam: float
    step: float
    sound: bool
    bytes: int
    warnings: list[str] = []
    again: bool = False
    idle_frames: int = 0
    """So many of the frames, the last ones, are of the clip to idle on."""
    measures: Measures | None = None
    advice: list[str] = []
    """How to film better, of what the film's own numbers call for."""


class Failure(msgspec.Struct, frozen=True, kw_only=True, tag="failure"):
    """A video that could not be prepared, and why."""

    name: str
    video: str
    reason: str
    kept: bool = False
    """Whether the same command goes on where this one was."""


Message = Progress | Result | Failure


def name_for(video: Path, given: str | None) -> str:
    """The avatar's name: as given, or made of the file's.

    Raises:
        PrepareError: nothing of it can be used.
    """
    if given is not None:
        if not _NAME.fullmatch(given):
            raise PrepareError(
                f"name {given[:80]!r}: up to 64 letters, digits, '.', '_' and '-' are taken,"
                " beginning with a letter or digit"
            )
        return given
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", video.stem).strip("-._")[:64]
    if not name:
        raise PrepareError(f"{video}: no name can be made of this; give one with --name")
    return name


def statement(text: str, what: str) -> str:
    """A statement of consent or licence, as it may go into a manifest.

    Raises:
        PrepareError: empty, too long, or with control characters.
    """
    clean = text.strip()
    if not clean:
        raise PrepareError(f"the statement of {what} is empty")
    if len(clean) > 10_000:
        raise PrepareError(f"the statement of {what} has {len(clean)} characters, at most 10,000")
    if _UNSEEN.search(clean):
        raise PrepareError(f"the statement of {what} holds control characters")
    return clean


def printable(text: str) -> str:
    """``text`` without what a manifest does not take."""
    return _UNSEEN.sub("?", text)
