# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast demo``: the shipped recording spoken by the shipped avatar."""

from __future__ import annotations

from pathlib import Path

import typer

from lipsync_fast.cli.console import warn
from lipsync_fast.cli.render import RenderRequest, render
from lipsync_fast.errors import MediaError, OutputError


def demo_recording() -> Path:
    """The recording that comes with the package.

    Raises:
        MediaError: this installation came without it.
    """
    path = Path(__file__).parents[1] / "data" / "demo" / "speech.wav"
    if not path.is_file():
        raise MediaError(f"this installation came without its demo recording ({path})")
    return path


def demo_command(out: Path, backend: str) -> None:
    """Write ``out``/demo.mp4 and ``out``/demo.png, over those of an earlier run.

    Raises:
        LipsyncError: the demo cannot be rendered or written.
    """
    recording = demo_recording()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {out}: {error.strerror}") from None
    video, sheet = out / "demo.mp4", out / "demo.png"
    summary = render(
        RenderRequest(
            audio=recording, out=str(video), backend=backend, contact_sheet=sheet, force=True
        )
    )
    for warning in summary.warnings:
        warn(warning)
    typer.echo(
        f"""
video          {video.absolute()}
contact sheet  {sheet.absolute()}
speed          {summary.seconds:.1f} s of video in {summary.wall_s:.1f} s: \
{summary.realtime_factor:.1f} x real time ({summary.fps:.0f} frames/s) on {summary.backend}

What to try next:
  lipsync-fast render YOUR.wav -o yours.mp4     your own recording
  lipsync-fast render YOUR.wav -o frames/       every frame, lossless
  lipsync-fast avatar list                      the avatars found here
  lipsync-fast avatar import DATASET            a SyncTalk_2D avatar of your own
  lipsync-fast doctor                           what this machine has, and a self-test
"""
    )
