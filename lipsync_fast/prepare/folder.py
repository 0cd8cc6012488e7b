# SPDX-License-Identifier: Apache-2.0
"""A prepared folder: all that training needs of a video, and all of an avatar but its networks.

    prepared.json       what it is (``Prepared``); an avatar's folder has manifest.json instead
    frames.bin, .npy    all N frames at 25/s as JPEGs one after the other; N + 1 offsets, uint64
    segments.npy        N x (S + 1) uint32: the restart segments within each frame's JPEG
    rects.npy           N x 4 int32: the stabilised face crop x1, y1, x2, y2 in the frame
    landmarks.npy       N x K x 2 float32: x, y in pixels as the detector gave them; NaN: no face
    masks.bin, .npy     optional: per frame, packed bits (zlib), set where the original stays
    sound.wav           optional: 16 kHz, mono, int16, 640 samples for each frame
    thumbnail.jpg, sheet.jpg, report.json, report.txt    for people

frames, segments, rects and masks are as in an avatar package (avatars/frames.py), and so is the
thumbnail.
Training reads all frames; the avatar that is packed at the end has those of ``loop`` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.frames import MappedFrames
from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.manifest import Count, FileEntry, FrameJpeg, Manifest, Side, Text, Window
from lipsync_fast.avatars.storage import (
    Storage,
)
from lipsync_fast.avatars.writer import AvatarWriter
from lipsync_fast.errors import (
    AvatarFormatError,
    AvatarNotFoundError,
    AvatarVersionError,
)
from lipsync_fast.prepare.loop import Loop
from lipsync_fast.prepare.sound import FRAME_SAMPLES

NAME = "prepared.json"
FORMAT_VERSION = 1
MAX_BYTES = 1 << 20
_WAV_HEADER = 44


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The video as it was given.

    Attributes:
        rate: its own frames a second.
        rotation: degrees counterclockwise by which its pictures are turned to be shown.
        start: seconds into it at which frame 0 lies.
    """

    name: str
    size: int
    sha256: str
    width: int
    height: int
    rate: float
    codec: str
    rotation: int = 0
    start: float = 0.0


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What a prepared folder says of itself (``prepared.json``).

    Attributes:
        points: K, landmarks of a frame.
        sound: whether there is a sound.wav.
        key: hash of the video and of all options; equal keys, equal folders.
    """

    format: Literal["lipsync-prepared"] = "lipsync-prepared"
    format_version: int = FORMAT_VERSION
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
    fps: Literal[25] = 25
    frame_width: Side
    frame_height: Side
    frame_count: Count
    jpeg: FrameJpeg = FrameJpeg()
    loop: Loop
    points: int
    detector: str
    sound: bool
    synthetic: bool = False
    licence: Text = ""
    provenance: Text = ""
    consent: Text = ""
    key: str
    source: Source
    warnings: list[str] = []
    files: dict[str, FileEntry] = {}

    def __post_init__(self) -> None:
        part = self.loop
        if part.count < 1 or part.first < 0 or part.first + part.count > self.frame_count:
            raise ValueError(f"the loop {part.first} + {part.count} leaves the frames")


def read_prepared(folder: Path) -> Prepared | None:
    """What a folder says of itself, or None if it is no prepared folder."""
    try:
        with open(folder / NAME, "rb") as file:
            data = file.read(MAX_BYTES + 1)
        return msgspec.json.decode(data, type=Prepared)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class PreparedAvatar(MappedFrames[Prepared]):
    """A prepared folder, mapped; opening copies nothing. Frames are counted from 0.

    Raises by ``open``:
        AvatarNotFoundError: nothing there.
        AvatarVersionError: written by a newer version.
        AvatarFormatError: damaged, or no prepared folder.
    """

    head = NAME

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.landmarks = self._landmarks()
        """N x K x 2 float32: x, y in pixels; NaN where no face was found."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PreparedAvatar:
        """Open a prepared folder."""
        if not Path(path).exists():
            raise AvatarNotFoundError(
                f"{path}: no such folder; 'lipsync-fast avatar prepare' makes one of a video"
            )
        return cls._opened(Path(path))

    def __len__(self) -> int:
        return self.manifest.frame_count

    def _read_head(self) -> Prepared:
        data = self._storage.member(NAME)
        if data is None:
            raise AvatarFormatError(
                f"{self.path}: no {NAME} in it; make a prepared folder by 'avatar prepare'"
            )
        try:
            head = msgspec.json.decode(data[: MAX_BYTES + 1], type=dict[str, msgspec.Raw])
            version = msgspec.json.decode(head.get("format_version", msgspec.Raw(b"0")), type=int)
            if version > FORMAT_VERSION:
                raise AvatarVersionError(
                    f"{self.path}: prepared in format {version}, newer than the {FORMAT_VERSION}"
                    " that this version reads; update lipsync-fast"
                )
            return msgspec.json.decode(data[: MAX_BYTES + 1], type=Prepared)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AvatarFormatError(f"{self.path}: {NAME} cannot be read: {error}") from None

    def _landmarks(self) -> NDArray[np.float32]:
        data = self.member("landmarks.npy")
        shape = len(self), self.manifest.points, 2
        header = len(data) - 4 * shape[0] * shape[1] * shape[2]
        expected = landmarks_header(shape)
        if header != len(expected) or bytes(data[:header]) != expected:
            raise AvatarFormatError(f"{self.path}: landmarks.npy is not {shape} of float32")
        return np.frombuffer(data, np.float32, offset=header).reshape(shape)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """A frame as H x W x 3 uint8 RGB."""
        return decode(self.frame_bytes(index), self.frame_size, f"{self.path}: frame {index}")

    def crop(self, index: int, side: int) -> NDArray[np.uint8]:
        """The face crop as a network of region ``side - 8`` sees it: side x side x 3 uint8."""
        return _native.resize_cubic(self.picture(index)[self.rect(index).slices], side, side)

    def sound(self) -> NDArray[np.int16] | None:
        """640 samples for each frame, 16 kHz mono, or None if the video had no sound."""
        if not self.manifest.sound:
            return None
        data = self.member("sound.wav")
        if len(data) != _WAV_HEADER + 2 * FRAME_SAMPLES * len(self) or bytes(data[:4]) != b"RIFF":
            raise AvatarFormatError(f"{self.path}: sound.wav has not 640 samples for each frame")
        return np.frombuffer(data, "<i2", offset=_WAV_HEADER)


def landmarks_header(shape: tuple[int, int, int]) -> bytes:
    """The beginning of landmarks.npy: numpy's own for N x K x 2 float32."""
    import io

    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


def pack_prepared(
    prepared: PreparedAvatar,
    dest: Path,
    models: dict[str, bytes],
    *,
    width: int,
    region: int,
    audio: AudioWindow | None = None,
    window: Window | None = None,
    overwrite: bool = False,
    provenance: str = "",
    changed: Callable[[int], NDArray[np.uint8]] | None = None,
) -> Path:
    """Make an avatar package of the loop's frames, as they are coded, and of trained networks.

    Args:
        dest: the package's folder, or a file if its name ends in ``.lsa``.
        models: ONNX bytes of ``audio_encoder``, ``image`` and ``decoder``.
        width, region, audio, window: of the networks, as in the manifest.
        provenance: said behind what is said of the video.
        changed: gives frames that stand in for the film's.

    Raises:
        OutputError: ``dest`` exists (without ``overwrite``) or cannot be written.
        AvatarFormatError: the prepared folder is damaged, or a model is missing.
    """
    m = prepared.manifest
    manifest = Manifest(
        name=m.name,
        width=width,
        region=region,
        window=window,
        audio=audio or AudioWindow(),
        frame_width=m.frame_width,
        frame_height=m.frame_height,
        frame_count=m.loop.count,
        loop=m.loop.kind,
        jpeg=m.jpeg,
        synthetic=m.synthetic,
        licence=m.licence,
        provenance="; ".join(part for part in (m.provenance, provenance) if part),
        consent=m.consent,
    )
    with AvatarWriter(
        dest, manifest, keep_pictures=False, keep_regions=False, overwrite=overwrite
    ) as writer:
        for name, data in models.items():
            writer.add_model(name, data)
        for index in range(m.loop.first, m.loop.first + m.loop.count):
            mask = prepared.mask(index)
            writer.add_frame(
                prepared.picture(index) if changed is None else changed(index),
                prepared.rect(index),
                None if mask is None else mask.astype(bool),
                jpeg=prepared.frame_bytes(index) if changed is None else None,
            )
        return writer.finish()
