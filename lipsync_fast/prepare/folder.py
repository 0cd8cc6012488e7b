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

frames, segments, rects, masks and the thumbnail are as in an avatar package (avatars/package.py).
Training reads all frames; the avatar that is packed at the end has those of ``loop`` alone.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.audio.windows import AudioWindow
from lipsync_fast.avatars.jpeg import decode
from lipsync_fast.avatars.manifest import Count, FileEntry, FrameJpeg, Manifest, Side, Text, Window
from lipsync_fast.avatars.storage import (
    Storage,
    check_rects,
    check_sizes,
    checked_offsets,
    read_array,
    unpacked_mask,
)
from lipsync_fast.avatars.writer import AvatarWriter
from lipsync_fast.errors import (
    AvatarError,
    AvatarFormatError,
    AvatarNotFoundError,
    AvatarVersionError,
)
from lipsync_fast.geometry import Rect
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


class PreparedAvatar:
    """A prepared folder, mapped; opening copies nothing. Frames are counted from 0.

    Raises by ``open``:
        AvatarNotFoundError: nothing there.
        AvatarVersionError: written by a newer version.
        AvatarFormatError: damaged, or no prepared folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.path = storage.path
        self.manifest = m = self._read()
        check_sizes(storage, {name: entry.size for name, entry in m.files.items()})
        self._frames = self._blobs("frames")
        self._masks = self._blobs("masks") if "masks.npy" in m.files else None
        self._segments = self._array("segments.npy", np.dtype(np.uint32))
        self._rects = self._array("rects.npy", np.dtype(np.int32), 4)
        check_rects(self._rects, (m.frame_width, m.frame_height), str(self.path))
        self.landmarks = self._landmarks()
        """N x K x 2 float32: x, y in pixels; NaN where no face was found."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> PreparedAvatar:
        """Open a prepared folder."""
        if not Path(path).exists():
            raise AvatarNotFoundError(
                f"{path}: no such folder; 'lipsync-fast avatar prepare' makes one of a video"
            )
        storage = Storage(Path(path))
        try:
            return cls(storage)
        except AvatarError:
            storage.close()
            raise

    def __enter__(self) -> PreparedAvatar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget the mapping; twice is harmless."""
        self._storage.close()

    def __len__(self) -> int:
        return self.manifest.frame_count

    def _read(self) -> Prepared:
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

    def member(self, name: str) -> memoryview:
        """A member's bytes, mapped, without a copy.

        Raises:
            AvatarFormatError: there is none of that name, or it is not listed.
        """
        data = self._storage.member(name)
        if data is None or name not in self.manifest.files:
            raise AvatarFormatError(f"{self.path}: {name} is missing")
        return data

    def _array(self, name: str, dtype: np.dtype[Any], columns: int = 0) -> NDArray[np.int64]:
        array = read_array(self.member(name), f"{self.path}/{name}")
        good = array.dtype == dtype and array.ndim == 2 and len(array) == len(self)
        if not good or (columns and array.shape[1] != columns):
            raise AvatarFormatError(f"{self.path}: {name} has shape {array.shape}, {array.dtype}")
        return array  # type: ignore[return-value]

    def _blobs(self, name: str) -> tuple[memoryview, NDArray[np.uint64]]:
        data = self.member(f"{name}.bin")
        index = self.member(f"{name}.npy")
        return data, checked_offsets(index, len(data), len(self), str(self.path), name)

    def _landmarks(self) -> NDArray[np.float32]:
        data = self.member("landmarks.npy")
        shape = len(self), self.manifest.points, 2
        header = len(data) - 4 * shape[0] * shape[1] * shape[2]
        expected = landmarks_header(shape)
        if header != len(expected) or bytes(data[:header]) != expected:
            raise AvatarFormatError(f"{self.path}: landmarks.npy is not {shape} of float32")
        return np.frombuffer(data, np.float32, offset=header).reshape(shape)

    def _blob(self, pile: tuple[memoryview, NDArray[np.uint64]], index: int) -> memoryview:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        if not self._storage.intact():
            raise AvatarFormatError(f"{self.path}: has become shorter while it was in use")
        return pile[0][int(pile[1][index]) : int(pile[1][index + 1])]

    def frame_jpeg(self, index: int) -> memoryview:
        """A frame's JPEG, with restart markers."""
        return self._blob(self._frames, index)

    def picture(self, index: int) -> NDArray[np.uint8]:
        """A frame as H x W x 3 uint8 RGB."""
        size = self.manifest.frame_width, self.manifest.frame_height
        return decode(self.frame_jpeg(index), size, f"{self.path}: frame {index}")

    def rect(self, index: int) -> Rect:
        """The face crop, inside the frame."""
        return Rect.from_corners(*self._rects[index].tolist())

    def crop(self, index: int, side: int) -> NDArray[np.uint8]:
        """The face crop as a network of region ``side - 8`` sees it: side x side x 3 uint8."""
        return _native.resize_cubic(self.picture(index)[self.rect(index).slices], side, side)

    def mask(self, index: int) -> NDArray[np.bool_] | None:
        """Rectangle-sized, True where the original stays; None: the network makes all of it."""
        if self._masks is None:
            return None
        packed = self._blob(self._masks, index)
        if not len(packed):
            return None
        size = self.rect(index).size
        return unpacked_mask(packed, size, f"{self.path}: mask {index}").astype(bool)

    def sound(self) -> NDArray[np.int16] | None:
        """640 samples for each frame, 16 kHz mono, or None if the video had no sound."""
        if not self.manifest.sound:
            return None
        data = self.member("sound.wav")
        if len(data) != _WAV_HEADER + 2 * FRAME_SAMPLES * len(self) or bytes(data[:4]) != b"RIFF":
            raise AvatarFormatError(f"{self.path}: sound.wav has not 640 samples for each frame")
        return np.frombuffer(data, "<i2", offset=_WAV_HEADER)

    def verify(self) -> None:
        """Check every member against its checksum (reads all of it).

        Raises:
            AvatarFormatError: names the first member that differs.
        """
        import hashlib

        for name, entry in self.manifest.files.items():
            if hashlib.sha256(self.member(name)).hexdigest() != entry.sha256:
                raise AvatarFormatError(f"{self.path}: {name} is damaged (its checksum differs)")


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
) -> Path:
    """Make an avatar package of the loop's frames, as they are coded, and of trained networks.

    Args:
        dest: the package's folder, or a file if its name ends in ``.lsa``.
        models: ONNX bytes of ``audio_encoder``, ``image`` and ``decoder``.
        width, region, audio, window: of the networks, as in the manifest.
        provenance: said behind what is said of the video.

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
            writer.add_frame(
                prepared.picture(index),
                prepared.rect(index),
                prepared.mask(index),
                jpeg=bytes(prepared.frame_jpeg(index)),
            )
        return writer.finish()
