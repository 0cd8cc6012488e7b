# SPDX-License-Identifier: Apache-2.0
"""What passes between a run and its workers, as JSON: settings once, then tasks and outcomes."""

from __future__ import annotations

from typing import Literal

import msgspec

from lipsync_fast.batch.manifest import Recording

State = Literal["made", "kept", "failed", "waiting"]
"""Made now; found as it would come out; cannot be made; not come to."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all recordings of a run.

    Attributes:
        out: an absolute folder, or a URL.
        run: the run's name (``outputs.claimed``).
        avatars: folders, or URLs, in which avatars are looked for first.
        backend: see ``engine.backends.create_backend``.
        threads: of one worker.
        force: make what is there already, and replace what is not a batch's.
    """

    out: str
    run: str
    avatars: tuple[str, ...] = ()
    backend: str = "auto"
    threads: int = 1
    force: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a recording in a worker's hands.

    Attributes:
        line: the recording's.
        error: why it has failed.
        passes: it may come out another time.
        stops: nothing else would come out either: the outputs' disk is full, say.
        frames: in the video.
        took_s: seconds of work.
        warnings: what was mended in the sound.
    """

    line: int
    state: State
    error: str = ""
    passes: bool = False
    stops: bool = False
    frames: int = 0
    took_s: float = 0.0
    warnings: tuple[str, ...] = ()


class Checked(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine says before work begins.

    Attributes:
        version: of this program there.
        error: why nothing can be made there; "" where it can.
    """

    version: str
    error: str = ""


__all__ = ["Checked", "Outcome", "Recording", "Settings", "State"]
