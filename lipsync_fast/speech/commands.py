# SPDX-License-Identifier: Apache-2.0
"""Programs of this machine that read a text and write its sound: espeak-ng, piper."""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lipsync_fast.config import Speech as SpeechConfig
from lipsync_fast.errors import ConfigError, SpeechError
from lipsync_fast.speech.wav import samples_of

ESPEAK_RATE = 22_050
PIECE = 8_192
SILENT_S = 20.0
"""How long a program may say nothing."""
SHOWN = 200


class CommandSpeech:
    """Runs a program for each text; see ``Speech``.

    Args:
        arguments: the command line for a voice.
        rate: of what it writes: s16le mono, or a WAV file of that.
    """

    def __init__(self, arguments: Callable[[str], list[str]], rate: int) -> None:
        self._arguments, self.rate = arguments, rate

    def speak(self, text: str, voice: str) -> Iterator[bytes]:
        """See ``Speech``."""
        command = self._arguments(voice)
        with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complaints:
            said.write(text.encode() + b"\n")
            said.seek(0)
            with subprocess.Popen(
                command, stdin=said, stdout=subprocess.PIPE, stderr=complaints, bufsize=0
            ) as process:
                try:
                    yield from samples_of(_output(process), self.rate)
                    status = process.wait(SILENT_S)
                except subprocess.TimeoutExpired:
                    status = -1
                finally:
                    process.kill()
            if status:
                complaints.seek(0)
                why = " ".join(complaints.read(4 * SHOWN).decode(errors="replace").split())
                raise SpeechError(f"{Path(command[0]).name} fails: {why[:SHOWN] or status}")


def _output(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    assert process.stdout is not None
    until = time.monotonic() + SILENT_S
    while True:
        if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
            raise SpeechError(f"speech synthesis has said nothing for {SILENT_S:.0f} s")
        piece = process.stdout.read(PIECE)
        if not piece:
            return
        until = time.monotonic() + SILENT_S
        yield piece


def espeak(config: SpeechConfig) -> CommandSpeech:
    """espeak-ng: small, quick, and a robot.

    Raises:
        ConfigError: it is not installed.
    """
    program = _found("espeak-ng")

    def arguments(voice: str) -> list[str]:
        chosen = _plain(voice or config.voice)
        return [program, "--stdout", "--stdin", "-b", "1", *(("-v", chosen) if chosen else ())]

    return CommandSpeech(arguments, config.rate or ESPEAK_RATE)


def piper(config: SpeechConfig) -> CommandSpeech:
    """piper: ``speech.model`` is the file of its voice, beside which lies what it is (.onnx.json).

    Raises:
        ConfigError: it is not installed, or there is no such voice.
    """
    program, model = _found("piper"), Path(config.model)
    try:
        about = json.loads(Path(f"{model}.json").read_bytes())
        rate = int(about["audio"]["sample_rate"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"speech.model {config.model!r}: expected the file of a piper voice (.onnx), with its"
            " .onnx.json beside it"
        ) from None

    def arguments(voice: str) -> list[str]:
        chosen = _plain(voice or config.voice)
        speaker = ("--speaker", chosen) if chosen else ()
        return [program, "--model", str(model), "--output-raw", *speaker]

    return CommandSpeech(arguments, config.rate or rate)


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise ConfigError(f"speech.engine needs the program {program}, which is not installed")
    return path


def _plain(voice: str) -> str:
    """A voice's name that is no option.

    Raises:
        SpeechError: it looks like one, or like a path.
    """
    if voice.startswith("-") or "/" in voice or not voice.isprintable():
        raise SpeechError(f"there is no voice {voice[:64]!r}")
    return voice
