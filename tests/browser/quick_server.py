# SPDX-License-Identifier: Apache-2.0
"""A real server whose engines run their networks once, and give what these made for every frame.

``python quick_server.py serve --config FILE`` is the real supervisor; ``python quick_server.py
engine`` is one of its engines, the real one but for its networks; with ``serve-jpegs`` and
``engine-jpegs``, also one that has no encoder of H.264. All of a frame's way is as it is, but for
the part that asks for a processor: so tests of how the page keeps time say nothing of how fast, or
how busy, the machine is. ``python quick_server.py front`` is one of its fronts, the real one, whose
recording that comes with the package is its first seconds: many tests hear it to its end.
"""

from __future__ import annotations

import io
import os
import sys
import wave
from pathlib import Path
from typing import Any

from lipsync_fast.config_load import load
from lipsync_fast.engine import process, scheduler
from lipsync_fast.engine.backends.base import RegionJob
from lipsync_fast.engine.backends.cpu import CpuBackend
from lipsync_fast.frontend import process as front
from lipsync_fast.frontend.http import app
from lipsync_fast.frontend.http.content import Content, etag_of
from lipsync_fast.logs import setup_logs
from lipsync_fast.supervisor import launch
from lipsync_fast.supervisor.children import Role, own_command

SAMPLE_S = 5
_region = CpuBackend._region
_made: dict[int, Any] = {}


def region(backend: CpuBackend, job: RegionJob, *args: Any) -> Any:
    """What the networks have made of the first frame, again."""
    if id(job.avatar) not in _made:
        _made[id(job.avatar)] = _region(backend, job, *args)
    return _made[id(job.avatar)]


def without_encoder(gpu: bool) -> str:
    """``media.h264.encoder_name`` where FFmpeg was built without one."""
    return ""


_sample = app.sample


def first_seconds() -> Content | None:
    """``app.sample``, but no more than its first seconds."""
    whole = _sample()
    if whole is None:
        return None
    with wave.open(io.BytesIO(whole.data)) as file:
        kept, pcm = file.getparams(), file.readframes(SAMPLE_S * file.getframerate())
    cut = io.BytesIO()
    with wave.open(cut, "wb") as file:
        file.setparams(kept)
        file.writeframes(pcm)
    return Content(cut.getvalue(), "audio/wav", etag_of(cut.getvalue()))


def command(role: Role) -> list[str]:
    """What children are run as."""
    if role == "gateway":
        return own_command(role)
    return [sys.executable, "-P", __file__, sys.argv[1].replace("serve", role)]


if __name__ == "__main__":
    if sys.argv[1].startswith("front"):
        app.sample = first_seconds  # type: ignore[assignment]
        front.main()
        sys.exit()
    if sys.argv[1] == "engine-jpegs":
        scheduler.encoder_name = without_encoder
    if sys.argv[1].startswith("engine"):
        CpuBackend._region = region  # type: ignore[method-assign]
        process.main()
    config = load(Path(sys.argv[3]), os.environ).config
    setup_logs(config.log, "supervisor")
    sys.exit(launch.serve(config, command=command))
