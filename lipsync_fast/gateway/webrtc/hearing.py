# SPDX-License-Identifier: Apache-2.0
"""What peers say, as PCM of 48 kHz, mono: microphones, which never end, and recordings."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Any

import av
import av.error
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from lipsync_fast.errors import PeerError
from lipsync_fast.media.files import TOLERANT

Pcm = NDArray[np.int16]
RATE = 48_000
BEFORE_S, QUIET_S = 0.3, 0.8
"""Sound that is said, too, from before it was loud; and how long it must be quiet to be over."""
LOUD, ABOVE = 180.0, 3.0
"""What is loud: root mean square (of 32768, -45 dB), and times what it is when nobody speaks."""
CALM = 0.02
"""How fast the level of silence is followed, by each piece."""
LEAST_RATE, MOST_RATE, MOST_CHANNELS = 4_000, 384_000, 8
MOST_S = 600.0
"""Of a recording."""
FORMATS = (
    (b"RIFF", 0, "wav"),
    (b"fLaC", 0, "flac"),
    (b"OggS", 0, "ogg"),
    (b"ID3", 0, "mp3"),
    (b"\x1a\x45\xdf\xa3", 0, "matroska"),
    (b"ftyp", 4, "mov"),
)
"""What recordings begin with: the kinds that a browser makes, or a person has."""


class Voice:
    """A microphone's sound as utterances: begun by a voice, ended by quiet.

    Attributes:
        open: something is being said.
    """

    def __init__(self) -> None:
        self.open = False
        self._before: deque[Pcm] = deque()
        self._quiet_s, self._silence = 0.0, LOUD / ABOVE

    def hear(self, samples: Pcm) -> list[Pcm]:
        """What is to be said now; ``open`` says whether it goes on."""
        seconds = len(samples) / RATE
        level = float(np.sqrt(np.mean(np.square(samples.astype(np.float32))))) if seconds else 0.0
        loud = level > max(LOUD, ABOVE * self._silence)
        if not loud:
            self._silence += CALM * (level - self._silence)
        if self.open:
            self._quiet_s = 0.0 if loud else self._quiet_s + seconds
            self.open = self._quiet_s < QUIET_S
            return [samples]
        self._before.append(samples)
        while sum(map(len, self._before)) > BEFORE_S * RATE + len(samples):
            self._before.popleft()
        if not loud:
            return []
        self.open, self._quiet_s = True, 0.0
        said = list(self._before)
        self._before.clear()
        return said


class Resampled:
    """Decoded frames of any kind as samples."""

    def __init__(self) -> None:
        self._resampler = AudioResampler(format="s16", layout="mono", rate=RATE)

    def push(self, frame: av.AudioFrame | None) -> Pcm:
        """What a frame makes; None: nothing more comes."""
        made = [f.to_ndarray().reshape(-1) for f in self._resampler.resample(frame)]
        return np.concatenate(made) if made else np.zeros(0, np.int16)


def opened(data: bytes) -> Iterator[Pcm]:
    """A file's sound, of which the beginning has been read already.

    Raises:
        PeerError: as ``recording``.
    """
    pieces = recording(data)
    return chain([next(pieces)], pieces)


def recording(data: bytes) -> Iterator[Pcm]:
    """A file's sound, in pieces of some milliseconds to seconds.

    Raises:
        PeerError: it is of no kind that is taken, or too long.
    """
    kind = next((name for magic, at, name in FORMATS if data[at:].startswith(magic)), None)
    if kind is None and data[:1] == b"\xff" and data[1:2] >= b"\xe0":
        kind = "mp3"
    if kind is None:
        raise PeerError("the recording is none of WAV, FLAC, Ogg, MP3, WebM or MP4", 415)
    got = 0
    try:
        with av.open(io.BytesIO(data), "r", format=kind, **TOLERANT) as container:
            streams = container.streams.audio
            if not streams:
                raise PeerError("the recording holds no sound", 415)
            resampled = Resampled()
            frames: Any = container.decode(streams[0])
            for frame in chain(_until_damaged(frames), (None,)):
                if frame is not None:
                    _check(frame)
                piece = resampled.push(frame)
                got += len(piece)
                if got > MOST_S * RATE:
                    raise PeerError(f"the recording is longer than {MOST_S:g} s", 413)
                if len(piece):
                    yield piece
    except av.error.FFmpegError as error:
        raise PeerError(f"the recording cannot be read ({error.strerror})", 415) from None
    except (ValueError, OverflowError) as error:  # a number that FFmpeg takes, and PyAV does not
        raise PeerError(f"the recording cannot be read ({error})", 415) from None
    if not got:
        raise PeerError("the recording holds no sound", 415)


def _check(frame: av.AudioFrame) -> None:
    """See that a frame is sound as people record it: at 1 Hz, a few bytes would be an hour.

    Raises:
        PeerError: it is not.
    """
    rate, channels = frame.sample_rate, frame.layout.nb_channels
    if not LEAST_RATE <= rate <= MOST_RATE or channels > MOST_CHANNELS:
        raise PeerError(
            f"the recording has {rate} Hz and {channels} channels; expected {LEAST_RATE} to"
            f" {MOST_RATE} Hz, up to {MOST_CHANNELS} channels",
            415,
        )


def _until_damaged(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    try:
        yield from frames
    except av.error.InvalidDataError:
        return
