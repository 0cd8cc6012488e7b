# SPDX-License-Identifier: Apache-2.0
"""Speech synthesis in a front: engines block, so each text has a thread, and they are counted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import trio
from numpy.typing import NDArray

from lipsync_fast.config import Speech as SpeechConfig
from lipsync_fast.errors import SpeechError
from lipsync_fast.logs import get_logger
from lipsync_fast.speech import Speech, open_speech
from lipsync_fast_client.protocol import AudioFormat

I16 = NDArray[np.int16]
log = get_logger("lipsync.front")
NOT_SET_UP = "this server speaks no text: no speech synthesis is set up (speech.engine)"


class TextToSpeech:
    """Makes a client's sound of its texts.

    Raises:
        ConfigError: the engine that is configured cannot work.
    """

    def __init__(self, config: SpeechConfig) -> None:
        self._speech = open_speech(config) if config.engine else None
        self._threads = trio.CapacityLimiter(config.at_once)

    @property
    def enabled(self) -> bool:
        """Whether there is an engine."""
        return self._speech is not None

    @asynccontextmanager
    async def spoken(
        self, text: str, voice: str, form: AudioFormat
    ) -> AsyncIterator[trio.MemoryReceiveChannel[bytes]]:
        """The sound of a text, in pieces of a client's form, no faster than they are taken.

        Left early, the engine is told at its next piece.

        Raises:
            SpeechError: it cannot be made.
        """
        speech = self._speech
        if speech is None:
            raise SpeechError(NOT_SET_UP)
        give, take = trio.open_memory_channel[bytes](0)
        failed: Exception | None = None  # raised at the end: a nursery would wrap it

        async def make() -> None:
            nonlocal failed
            with give:
                try:
                    await trio.to_thread.run_sync(
                        lambda: _speak(speech, text, voice, form, give),
                        abandon_on_cancel=True,
                        limiter=self._threads,
                    )
                except SpeechError as error:
                    failed = error

        async with trio.open_nursery() as nursery:
            with take:
                nursery.start_soon(make)
                try:
                    yield take
                except Exception as error:
                    failed = error
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed


def _speak(
    speech: Speech,
    text: str,
    voice: str,
    form: AudioFormat,
    give: trio.MemorySendChannel[bytes],
) -> None:
    """In a thread: speak, and hand over.

    Raises:
        SpeechError: it cannot be made.
    """
    resampled = _resampler(speech.rate, form.sample_rate)
    rest, came = b"", False
    pieces = speech.speak(text, voice)
    try:
        for piece in pieces:
            whole = rest + piece
            used = len(whole) - len(whole) % 2
            rest = whole[used:]
            samples = resampled(np.frombuffer(whole[:used], "<i2"), False)
            if len(samples):
                came = True
                trio.from_thread.run(give.send, in_form(samples, form))
        last = resampled(np.zeros(0, np.int16), True)
        if len(last):
            came = True
            trio.from_thread.run(give.send, in_form(last, form))
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.RunFinishedError):
        return  # nobody wants the rest
    except SpeechError:
        raise
    except Exception as error:  # of an engine, whoever has written it
        log.exception("speech synthesis fails")
        raise SpeechError("speech synthesis fails; the server's log says why") from error
    finally:
        close = getattr(pieces, "close", None)
        if close is not None:
            close()
    if not came:
        raise SpeechError("speech synthesis made no sound of this text")


def _resampler(rate: int, wanted: int) -> Callable[[I16, bool], I16]:
    """From one rate to another, piece by piece; the second argument: it is the last one."""
    if rate == wanted:
        return lambda samples, last: samples
    import soxr

    stream = soxr.ResampleStream(rate, wanted, 1, dtype="int16")
    return lambda samples, last: stream.resample_chunk(samples, last=last)


def in_form(samples: I16, form: AudioFormat) -> bytes:
    """Mono samples (n,) as what a client sends."""
    spread = np.repeat(samples[:, None], form.channels, axis=1)
    if form.format == "s16le":
        return spread.astype("<i2").tobytes()
    return (spread.astype("<f4") / 32768.0).astype("<f4").tobytes()
