# SPDX-License-Identifier: Apache-2.0
"""How media files are opened, which of their tracks is meant, and how long they are."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import av.error
from av.container import InputContainer

from lipsync_fast.errors import MediaError, NotMediaError, words_of
from lipsync_fast.media.claims import Understated, understated
from lipsync_fast.untrusted.lookalikes import what_lies_at

EARLY_S = 0.5
"""By so much a track may be shorter than the file counts: padding, a last frame's length."""
SCANNED_BYTES = 256 << 20
"""Files up to this size are gone through to know how long they are: a tenth of a second."""
_EXACT = ("mov", "flac")
"""Containers whose streams' lengths are counted: by a table, or by an encoder at its end."""
TOLERANT: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)  # from 19 on it is always so
"""Options of ``av.open``: texts of a file that are no UTF-8 are no errors."""
_MEDIA, _TEXT = ("a recording", "a video"), ("a text", "a playlist")
Stream = TypeVar("Stream", bound=av.stream.Stream)


def media_url(path: str | os.PathLike[str]) -> str:
    """The name by which FFmpeg opens a file: never as a URL, whatever its name begins with."""
    return f"file:{os.fspath(path)}"


def open_media(path: Path, what: str, options: dict[str, str] | None = None) -> InputContainer:
    """Open a media file to read.

    Args:
        what: it is expected to be, such as "a video", for errors.
        options: FFmpeg's, for the container and its decoders.

    Raises:
        MediaError: with the path and the reason.
    """
    try:
        if not path.exists():
            raise MediaError(f"{path}: no such file")
        if not path.is_file():
            is_what = "a folder" if path.is_dir() else "no file"
            raise MediaError(f"{path}: is {is_what}, not {what}")
        if path.stat().st_size == 0:
            raise MediaError(f"{path}: is empty (0 bytes)")
        claim = understated(path)
        file: Any = media_url(path) if claim is None else _Mended(path, claim)
        container: InputContainer = av.open(file, "r", options=options, **TOLERANT)
        return container
    except av.error.FFmpegError as error:
        known = what_lies_at(path)
        more = "" if not known or known.startswith(_MEDIA) else f"; it is {known}"
        text = f"{path}: cannot be read as {what} ({error.strerror}){more}"
        raise NotMediaError(text, known=bool(more) and not known.startswith(_TEXT)) from None
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: cannot be read ({words_of(error)})") from None


class _Mended:
    """A file whose header claims too little, read as if it claimed what is there.

    It is closed with the last reference to it: PyAV closes no file that it was given.
    """

    def __init__(self, path: Path, claim: Understated) -> None:
        self.name = str(path)
        self._claim, self._at = claim, 0
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._fd)

    def read(self, size: int) -> bytes:
        """The next bytes, with the right claim among them."""
        data = os.pread(self._fd, size, self._at)
        at, new = self._claim.at - self._at, self._claim.instead
        self._at += len(data)
        first, last = max(0, at), min(len(data), at + len(new))
        if first >= last:
            return data
        return data[:first] + new[first - at : last - at] + data[last:]

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As files have it."""
        ends = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}
        self._at = max(0, ends[whence] + offset)
        return self._at

    def tell(self) -> int:
        """Where it stands."""
        return self._at


def chosen(streams: Sequence[Stream], rank: Callable[[Stream], int]) -> Stream:
    """The track that is meant, as FFmpeg chooses: one that can be decoded, marked as the default,
    of the highest rank; the first of equals."""

    def key(stream: Stream) -> tuple[bool, bool, int]:
        context = stream.codec_context
        decodes = context is not None and bool(context.is_decoder)
        default = bool(stream.disposition & av.stream.Disposition.default)
        return decodes, default, rank(stream) if decodes else 0

    return max(streams, key=key)


def other_than_first(streams: Sequence[Stream], stream: Stream, what: str) -> list[str]:
    """A warning where the first of several tracks is not the one that is used."""
    number = list(streams).index(stream)
    if number == 0:
        return []
    default = stream.disposition & av.stream.Disposition.default
    why = "the file's default" if default else "the first that can be used"
    return [f"of its {len(streams)} {what} tracks, number {number + 1} is used ({why})"]


@dataclass(slots=True)
class Track:
    """What a file holds of one stream, in seconds.

    Attributes:
        length: of all its packets.
        begin, end: times of the first and behind the last.
    """

    length: Fraction = Fraction(0)
    begin: Fraction | None = None
    end: Fraction = Fraction(0)


def tracks(path: Path) -> dict[int, Track]:
    """What the packets of a file come to, by their stream's index; of large files nothing."""
    found: dict[int, Track] = {}
    if path.stat().st_size > SCANNED_BYTES:
        return found
    try:
        with open_media(path, "media") as container:
            for packet in container.demux():
                if packet.size:
                    _add(found.setdefault(packet.stream_index, Track()), packet)
    except (av.error.FFmpegError, MediaError):
        pass  # so far it can be read
    return found


def _add(track: Track, packet: av.Packet[Any]) -> None:
    base = packet.time_base or Fraction(0)
    length = (packet.duration or 0) * base
    track.length += length
    if packet.pts is not None:
        at = packet.pts * base
        track.begin = at if track.begin is None else min(track.begin, at)
        track.end = max(track.end, at + length)


def claimed_seconds(
    path: Path, container: InputContainer, stream: av.stream.Stream
) -> float | None:
    """Seconds of a stream that the file counts itself, so that fewer mean that it is cut off.

    Tables of samples and encoders that ended count; of FLV, whose header has one length for all
    tracks, that length counts where no track reaches it.
    """
    kind = container.format.name.split(",")[0]
    if kind in _EXACT and stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if kind == "flv" and container.duration is not None:
        claimed = container.duration / av.time_base
        ends = [float(track.end) for track in tracks(path).values()]
        if ends and max(ends) < claimed - EARLY_S:
            return claimed
    return None


def length_of(path: Path, container: InputContainer, stream: av.stream.Stream) -> float | None:
    """Seconds of a stream that are there; for progress alone.

    What a header says is taken where it is counted; else the file is gone through. Of a large one,
    the least of what its header and its size allow.
    """
    if (
        container.format.name.startswith("mov")
        and stream.duration is not None
        and stream.time_base is not None
    ):
        return float(stream.duration * stream.time_base)
    track = tracks(path).get(stream.index)
    if track is not None and track.begin is not None:
        of_sound = stream.type == "audio" and track.length
        return float(track.length if of_sound else track.end - track.begin)
    claimed = [] if container.duration is None else [container.duration / av.time_base]
    if rate := getattr(stream, "bit_rate", None):
        claimed.append(8 * path.stat().st_size / rate)
    return min(claimed, default=None)
