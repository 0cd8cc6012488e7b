# SPDX-License-Identifier: Apache-2.0
"""An engine of speech synthesis whose voice is the shipped recording; for servers of tests."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from talking import speech

from lipsync_fast.config import Speech as SpeechConfig
from lipsync_fast.errors import SpeechError

PIECE = 2_001
"""Odd: samples are cut."""


class Recording:
    """Says so many tenths of a second as a text has characters."""

    rate = 16_000

    def speak(self, text: str, voice: str) -> Iterator[bytes]:
        if text == "broken":
            raise RuntimeError("a defect of the engine")
        if text == "refused":
            raise SpeechError("the service answers 401: no key")
        if text == "silent":
            return
        if text == "halting":
            yield speech(0.2).tobytes()
            time.sleep(60)
        data = speech(len(text) / 10, float(voice or 0.5)).tobytes()
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]
        if text.endswith("…"):
            time.sleep(0.5)
            raise SpeechError("the service has gone")


@contextmanager
def speaks_texts() -> Iterator[dict[str, Any]]:
    """What the configuration of a server that is started meanwhile says of it."""
    before = os.environ.get("PYTHONPATH")
    tests = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [tests, before]))
    try:
        yield {"speech": {"engine": f"{__name__}:make"}}
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def make(config: SpeechConfig) -> Recording:
    return Recording()
