# SPDX-License-Identifier: Apache-2.0
"""A peer's pictures and sound as an MP4: access units as they are, sound as AAC, on one clock."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from typing import IO, Any, cast

import av
import av.error
import numpy as np

from lipsync_fast.errors import PeerError, words_of
from lipsync_fast.gateway.webrtc.hearing import RATE

MOST_S = 600.0
"""Of a recording; what comes later is left out."""
MICRO = 1_000_000
_START = b"\0\0\1"


class Recorder:
    """Takes what the peer is sent, from the next key frame on, into a file without a name.

    Args:
        size: of the pictures: width, height.

    Raises:
        PeerError: no file can be made.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="lipsync-record-")  # noqa: SIM115, it is kept
        except OSError as error:
            raise PeerError(f"no file for a recording: {words_of(error)}", 507) from None
        self._into: Any = None
        self._began = self._last = 0
        self._samples = 0
        self.failed = ""
        """Why nothing more is taken."""

    def picture(self, access_unit: bytes, media: int, key: bool) -> None:
        """A picture; ``media`` in microseconds, and only growing."""
        if self.failed or (self._into is None and not key):
            return
        try:
            if self._into is None:
                self._begin(access_unit, media)
            at = media - self._began
            if at > MOST_S * MICRO or at < self._last:
                return
            self._last = at
            packet: Any = av.Packet(access_unit)
            packet.stream, packet.time_base = self._pictures, Fraction(1, MICRO)
            packet.pts = packet.dts = at
            packet.is_keyframe = key
            self._into.mux(packet)
        except (OSError, ValueError) as error:  # FFmpeg's errors are these as well
            self.failed = words_of(error)

    def sound(self, pcm: bytes, media: int) -> None:
        """Sound, s16le mono at 48 kHz, whose first sample is heard then."""
        if self.failed or self._into is None:
            return
        at = (media - self._began) * RATE // MICRO
        samples = np.frombuffer(pcm, "<i2")
        if at < self._samples:
            samples = samples[self._samples - at :]
        try:
            self._silence(min(at, int(MOST_S * RATE)))
            if self._samples + len(samples) <= MOST_S * RATE:
                self._encode(samples)
        except (OSError, ValueError) as error:
            self.failed = words_of(error)

    def end(self) -> IO[bytes]:
        """All of it.

        Raises:
            PeerError: nothing came, or it could not be written.
        """
        try:
            if self._into is not None and not self.failed:
                self._silence(self._last * RATE // MICRO)
                self._into.mux(self._sounds.encode(None))
                self._into.close()
        except (OSError, ValueError) as error:
            self.failed = words_of(error)
        if self._into is None or self.failed:
            self.close()
            raise PeerError(f"nothing was recorded: {self.failed or 'no picture came'}", 404)
        self._file.flush()
        return self._file

    def close(self) -> None:
        """Forget it."""
        self._into = None
        self._file.close()

    def _begin(self, access_unit: bytes, media: int) -> None:
        into: Any = av.open(cast(Any, self._file), "w", format="mp4")
        pictures = into.add_stream("h264", rate=25)
        pictures.width, pictures.height = self._size
        pictures.time_base = Fraction(1, MICRO)
        pictures.codec_context.extradata = parameters(access_unit)
        sounds = into.add_stream("aac", rate=RATE)
        sounds.layout, sounds.bit_rate = "mono", 96_000
        self._into, self._pictures, self._sounds = into, pictures, sounds
        self._began = media

    def _silence(self, until: int) -> None:
        """Up to a sample, where nothing was said."""
        while self._samples < until:
            self._encode(np.zeros(min(RATE, until - self._samples), np.int16))

    def _encode(self, samples: np.ndarray[Any, np.dtype[np.int16]]) -> None:
        if not len(samples):
            return
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "s16", "mono")
        frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
        frame.pts = self._samples
        self._samples += len(samples)
        self._into.mux(self._sounds.encode(frame))


def parameters(access_unit: bytes) -> bytes:
    """The parameter sets (SPS, PPS) of a key frame, in Annex B's form."""
    units = access_unit.split(_START)[1:]
    kept = [unit.rstrip(b"\0") for unit in units if unit and unit[0] & 31 in (7, 8)]
    return b"".join(b"\0" + _START + unit for unit in kept)


def another(file: IO[bytes]) -> IO[bytes]:
    """The same file, opened once more, from its beginning."""
    return open(f"/proc/self/fd/{file.fileno()}", "rb")
