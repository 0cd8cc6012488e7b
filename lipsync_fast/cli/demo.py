# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast demo``: the shipped recording spoken by the shipped avatar; then the page."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from lipsync_fast.cli.render import RenderRequest, render
from lipsync_fast.console import warn
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


def demo_command(out: Path, backend: str, *, page: bool) -> None:
    """Write ``out``/demo.mp4 and ``out``/demo.png, over those of an earlier run; then go live.

    Args:
        out: folder for the results.
        backend: for rendering.
        page: end with the page served, until Ctrl-C. Where the environment has ``CI=true``, a
            client of its own speaks through a server instead, writes ``out``/live.mp4, and all
            ends.

    Raises:
        LipsyncError: the demo cannot be rendered or written, or the server does not start.
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
  lipsync-fast serve                            the live server, for the page and for clients
  lipsync-fast avatar list                      the avatars found here
  lipsync-fast avatar import DATASET            a SyncTalk_2D avatar of your own
  lipsync-fast doctor                           what this machine has, and a self-test
"""
    )
    if os.environ.get("CI", "").lower() in ("1", "true"):
        from lipsync_fast.cli.live_demo import speak_through_a_server

        speak_through_a_server(recording, out / "live.mp4")
    elif page:
        _serve_page()


def _serve_page() -> None:
    """Serve on the usual ports, or on free ones where others have them, until Ctrl-C."""
    from lipsync_fast.cli.serve import serve_command
    from lipsync_fast.errors import PortInUseError

    typer.echo("Now live, in a browser on this machine (Ctrl-C ends it):")
    try:
        serve_command(None, {"log-level": "warning"}, print_config=False)
    except PortInUseError:
        free = {"port": [0], "http-port": 0, "log-level": "warning"}
        serve_command(None, free, print_config=False)
