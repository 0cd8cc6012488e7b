# SPDX-License-Identifier: Apache-2.0
"""A client's PCM: from bytes in pieces of any size to 16 kHz, and back as its echo."""

from __future__ import annotations

import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.audio.pcm import Resampler, to_float, to_mono
from lipsync_fast.timing import FPS, SAMPLE_RATE
from lipsync_fast_client.protocol import AudioFormat


class ClientAudio:
    """The sound of one utterance after the other.

    A sample that is cut between two pieces is completed by the next one. Samples that are not
    finite count as silence.

    Args:
        form: what the client sends.
        echo: keep the sound, to be given back frame by frame.
    """

    def __init__(self, form: AudioFormat, echo: bool) -> None:
        self.form, self._echo = form, echo
        self._dtype = np.dtype("<i2" if form.format == "s16le" else "<f4")
        self._rest = b""
        self._resampler = Resampler(form.sample_rate)
        self._kept: dict[int, bytearray] = {}
        self._given: dict[int, int] = {}

    def push(self, data: bytes) -> F32:
        """Bytes to samples at 16 kHz (may be none yet)."""
        self._mono: F32 = self._decoded(data)
        return self._resampler.push(self._mono)

    def keep(self, utterance: int) -> None:
        """Keep what was pushed last for the echo of an utterance."""
        self._keep(utterance, self._mono)

    def _keep(self, utterance: int, mono: F32) -> None:
        if self._echo and len(mono):
            loud = np.clip(np.nan_to_num(mono), -1.0, 1.0)
            pcm = np.clip(np.rint(loud * 32768.0), -32768, 32767).astype("<i2")
            self._kept.setdefault(utterance, bytearray()).extend(pcm.tobytes())

    @property
    def echoes(self) -> bool:
        """Whether the client gets its sound back."""
        return self._echo

    @property
    def resamples_echo(self) -> bool:
        """Whether ``for_echo`` has something to do."""
        return self._echo and self.form.sample_rate != SAMPLE_RATE

    def for_echo(self, pcm: F32) -> F32:
        """A sound of 16 kHz at the client's rate, for ``keep_whole`` (in any thread)."""
        import soxr

        out: F32 = soxr.resample(pcm, SAMPLE_RATE, self.form.sample_rate, quality="HQ")
        return out

    def keep_whole(self, utterance: int, mono: F32) -> None:
        """Keep what ``for_echo`` gave for the echo of an utterance that the client did not send."""
        self._keep(utterance, mono)

    def finish(self) -> F32:
        """The utterance's last samples at 16 kHz; what is pushed next begins another one."""
        last = (
            self._resampler.finish() if self._resampler.report.samples else np.zeros(0, np.float32)
        )
        self.reset()
        return last

    def reset(self) -> None:
        """Forget the utterance that was begun."""
        self._resampler = Resampler(self.form.sample_rate)
        self._rest = b""

    def forget_echoes(self) -> None:
        """Forget all echoes."""
        self._kept.clear()
        self._given.clear()

    def echo(self, utterance: int, frame: int) -> bytes:
        """The 40 ms of a frame as s16le, mono, at the client's rate; less at the end."""
        kept = self._kept.get(utterance)
        if kept is None:
            return b""
        rate = self.form.sample_rate
        given = self._given.get(utterance, 0)
        first, end = (2 * (k * rate // FPS) for k in (frame, frame + 1))
        piece = bytes(kept[max(0, first - given) : max(0, end - given)])
        del kept[: max(0, end - given)]
        self._given[utterance] = max(given, end)
        return piece

    def forget_echo(self, utterance: int) -> None:
        """An utterance was shown: forget its echo."""
        self._kept.pop(utterance, None)
        self._given.pop(utterance, None)

    def _decoded(self, data: bytes) -> F32:
        whole = self._rest + data if self._rest else data
        size = self._dtype.itemsize * self.form.channels
        used = len(whole) - len(whole) % size
        self._rest = whole[used:]
        samples = np.frombuffer(whole, self._dtype, used // self._dtype.itemsize)
        return to_mono(to_float(samples.reshape(-1, self.form.channels)))
