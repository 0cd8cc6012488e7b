# SPDX-License-Identifier: Apache-2.0
"""Writers of rendered frames: MP4, a folder of PNG files, MJPEG on a stream, a contact sheet."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from lipsync_fast.errors import OutputError
from lipsync_fast.output.base import FrameWriter, check_file_target, check_folder_target

Kind = Literal["mp4", "pngs", "mjpeg"]
_OTHER_VIDEO = {".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".ts", ".flv", ".ogv", ".mpg"}
_PICTURE = {".png", ".jpg", ".jpeg"}


def output_kind(out: str) -> Kind:
    """What ``out`` asks for by its form: ``-`` MJPEG, ``….mp4`` a video, else a folder of PNG.

    Raises:
        OutputError: it has the ending of a file that is not written here.
    """
    if out == "-":
        return "mjpeg"
    suffix = Path(out).suffix.lower()
    if suffix == ".mp4":
        return "mp4"
    if suffix in _OTHER_VIDEO:
        raise OutputError(f"cannot write {out}: videos are written as .mp4 only")
    if suffix in _PICTURE:
        raise OutputError(
            f"cannot write {out}: pictures go to a folder (one PNG a frame); name a folder, "
            "or use --contact-sheet for one picture"
        )
    return "pngs"


def check_output(out: str, force: bool) -> Kind:
    """Everything about ``out`` that can be refused before any work is done.

    Raises:
        OutputError: with the reason.
    """
    kind = output_kind(out)
    if kind == "mp4":
        check_file_target(Path(out), force)
    elif kind == "pngs":
        check_folder_target(Path(out), force)
    elif sys.stdout.isatty():
        raise OutputError(
            "not writing MJPEG to a terminal: send it to a file or a program, such as "
            "`lipsync-fast render speech.wav -o - | ffplay -f mjpeg -`"
        )
    return kind


def open_writer(out: str, sound: Path, packet: bytes, force: bool) -> FrameWriter:
    """The writer that ``out`` asks for.

    Args:
        out: ``-``, a name ending in .mp4, or a folder.
        sound: the recording that goes into a video.
        packet: the XMP packet that every picture and video carries.
        force: replace what is there, where that is allowed.

    Raises:
        OutputError: as ``check_output``.
    """
    kind = check_output(out, force)
    if kind == "mp4":
        from lipsync_fast.output.mp4 import Mp4Writer

        return Mp4Writer(Path(out), sound, packet, force=force)
    if kind == "pngs":
        from lipsync_fast.output.pngs import PngFolderWriter

        return PngFolderWriter(Path(out), packet, force=force)
    from lipsync_fast.output.mjpeg import MjpegWriter

    return MjpegWriter(sys.stdout.buffer)
