# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast render``: from a recording to a video, pictures or a stream."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lipsync_fast.console import Progress, one_line, say, warn
from lipsync_fast.errors import OutputError
from lipsync_fast.names import json_bytes
from lipsync_fast.output import check_output, open_writer
from lipsync_fast.rounding import rounded
from lipsync_fast.timing import FPS

if TYPE_CHECKING:
    from lipsync_fast.output.sheet import ContactSheet


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """What the command line asked for."""

    audio: Path
    out: str
    avatar: str = "demo"
    avatars: tuple[str, ...] = ()
    start_frame: int = 0
    backend: str = "auto"
    contact_sheet: Path | None = None
    force: bool = False
    quiet: bool = False
    json: bool = False


class RenderSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a render came to; the object that ``--json`` writes."""

    path: str
    frames: int
    seconds: float
    """Length of the video."""
    wall_s: float
    """From the command's start to the finished file; the interpreter's own start not included."""
    fps: float
    """Frames made a second of wall time."""
    realtime_factor: float
    """Seconds of video made a second of wall time."""
    avatar: str
    backend: str
    contact_sheet: str | None = None
    warnings: list[str] = []

    def line(self) -> str:
        """For people."""
        return (
            f"{self.path}: {self.frames} frames, {self.seconds:.2f} s of video in "
            f"{self.wall_s:.2f} s ({self.fps:.1f} frames/s, {self.realtime_factor:.2f} x real time)"
        )


def render_command(request: RenderRequest) -> None:
    """Render, and report as asked.

    Raises:
        LipsyncError: anything that the user can put right.
    """
    summary = render(request)
    if not request.quiet:
        for warning in summary.warnings:
            warn(warning)
        say(one_line(summary.line()))
    if request.json:
        text = json_bytes(rounded(summary)).decode() + "\n"
        stream = sys.stderr if request.out == "-" else sys.stdout
        stream.write(text)
        stream.flush()


def render(request: RenderRequest) -> RenderSummary:
    """Render as ``request`` says.

    What can be refused is refused before work begins: first the output, then the avatar, then the
    recording. The output gets its final name at the very end; on any error, Ctrl-C included,
    nothing remains.

    Raises:
        LipsyncError: the output cannot be taken, the avatar or the recording cannot be used.
    """
    begun = time.monotonic()
    check_output(request.out, request.force)
    sheet = _sheet_check(request)

    import lipsync_fast
    from lipsync_fast.cli.fetching import found_avatar
    from lipsync_fast.provenance import xmp_packet

    frames = 0
    warnings: list[str] = []
    with ExitStack() as stack:
        package = found_avatar(request.avatar, request.avatars, request.quiet)
        avatar = stack.enter_context(lipsync_fast.open(package, backend=request.backend))
        rendering = stack.enter_context(
            closing(avatar.render(request.audio, start_frame=request.start_frame))
        )
        packet = xmp_packet(avatar.manifest.synthetic)
        writer = stack.enter_context(open_writer(request.out, request.audio, packet, request.force))
        contact = _open_sheet(sheet, packet, request.force)
        progress = stack.enter_context(Progress(rendering.total_frames, quiet=request.quiet))
        for frame in rendering:
            writer.write(frame)
            if contact is not None:
                contact.add(frame)
            frames += 1
            progress.advance()
        writer.commit()
        if contact is not None:
            contact.write()
        warnings += [*rendering.warnings, *getattr(writer, "warnings", [])]
        backend_name = avatar.backend_name
        name = avatar.name
    wall = time.monotonic() - begun
    return RenderSummary(
        path=writer.target,
        frames=frames,
        seconds=frames / FPS,
        wall_s=round(wall, 3),
        fps=round(frames / wall, 2),
        realtime_factor=round(frames / FPS / wall, 3),
        avatar=name,
        backend=backend_name,
        contact_sheet=str(sheet) if sheet else None,
        warnings=warnings,
    )


def _sheet_check(request: RenderRequest) -> Path | None:
    """The contact sheet's path, once it is known that it can be taken."""
    sheet = request.contact_sheet
    if sheet is None:
        return None
    from lipsync_fast.output.sheet import check_sheet_target

    check_sheet_target(sheet, request.force)
    if request.out != "-" and sheet.absolute() == Path(request.out).absolute():
        raise OutputError(f"{sheet} cannot be both the output and the contact sheet")
    return sheet


def _open_sheet(sheet: Path | None, packet: bytes, force: bool) -> ContactSheet | None:
    if sheet is None:
        return None
    from lipsync_fast.output.sheet import ContactSheet

    return ContactSheet(sheet, packet, force=force)
