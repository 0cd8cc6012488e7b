# SPDX-License-Identifier: Apache-2.0
"""What people see of a prepared video: a table of its numbers, and a sheet of its frames."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.contact_sheet import TILE_WIDTH, contact_sheet
from lipsync_fast.geometry import Rect
from lipsync_fast.prepare.loop import Loop
from lipsync_fast.prepare.quality import Measures
from lipsync_fast.prepare.request import Failure, Result


def report_lines(result: Result) -> list[str]:
    """One video's report."""
    rate = f"{result.source_rate:g}"
    played = f"frames {result.loop_first}-{result.loop_first + result.loop_count - 1}"
    how = "there and back" if result.loop == "pingpong" else "round and round"
    where = "at the turn" if result.loop == "pingpong" else "at the seam"
    rows = [
        ("name", result.name),
        ("video", result.video),
        ("frames", f"{result.frames} at 25/s ({result.seconds:.1f} s; the video has {rate}/s)"),
        ("size", f"{result.width} x {result.height}"),
        ("face", f"{result.face} pixels wide"),
        ("landmarks", f"{result.points} a frame, {result.detector}; {result.bridged} bridged"),
        ("loop", f"{played}, {how}: {result.seam:.2f} grey levels {where}"),
        ("", f"({result.step:.2f} between two frames)"),
        ("sound", "16 kHz" if result.sound else "none"),
        *_measured(result.measures),
        ("bytes", f"{result.bytes / 1e6:.1f} MB"),
        *(("warning", warning) for warning in result.warnings),
        *(("advice", advice) for advice in result.advice),
    ]
    if result.idle_frames:
        rows.insert(3, ("", f"(the last {result.idle_frames} of the idle clip)"))
    return [f"{name:<11}{value}" for name, value in rows]


def _measured(m: Measures | None) -> list[tuple[str, str]]:
    """What the film is like."""
    if m is None:
        return []
    light = f"face {m.brightness} of 255, changes by {m.brightness_change}"
    rows = [("light", light), ("sharpness", f"{m.sharpness:.2f} (good films: 0.25 and more)")]
    if m.mouth_open is not None:
        rows.append(("mouth", f"open in {100 * m.mouth_open:.0f}% of the frames"))
    if m.follows_sound is not None:
        late = "" if m.sound_late_ms is None else f", {m.sound_late_ms} ms late"
        rows.append(("", f"follows the sound: {m.follows_sound:.2f}{late}"))
    if m.turned is not None:
        rows.append(("head", f"turned by {m.turned[0]} to {m.turned[1]} degrees"))
    if m.eyes_shut is not None:
        rows.append(("eyes", f"shut in {100 * m.eyes_shut:.0f}% of the frames"))
    return rows


def summary_lines(outcomes: Sequence[Result | Failure]) -> list[str]:
    """All videos in one table, then each warning and each failure."""
    rows: list[tuple[str, ...]] = [("NAME", "FRAMES", "SIZE", "FACE", "LOOP", "SEAM", "STEP", "")]
    for made in outcomes:
        if isinstance(made, Failure):
            rows.append((made.name, "-", "-", "-", "-", "-", "-", "FAILED"))
            continue
        rows.append(
            (
                made.name,
                str(made.frames),
                f"{made.width}x{made.height}",
                str(made.face),
                f"{made.loop} {made.loop_count}",
                f"{made.seam:.2f}",
                f"{made.step:.2f}",
                "there already" if made.again else "",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    for made in outcomes:
        if isinstance(made, Result):
            lines += [f"warning: {made.name}: {warning}" for warning in made.warnings]
            lines += [f"advice: {made.name}: {advice}" for advice in made.advice]
    for made in outcomes:
        if isinstance(made, Failure):
            kept = "; the same command goes on where it was" if made.kept else ""
            lines.append(f"failed: {made.name}: {made.reason}{kept}")
    return lines


def sheet_tile(picture: NDArray[np.uint8], rect: Rect) -> tuple[NDArray[np.uint8], Rect]:
    """A frame and its crop, as small as the sheet shows them."""
    scale = TILE_WIDTH / picture.shape[1]
    size = TILE_WIDTH, max(1, round(picture.shape[0] * scale))
    small = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    corners = (round(v * scale) for v in rect.corners)
    return np.asarray(small), Rect.from_corners(*corners)


def sheet_bytes(
    pictures: Sequence[NDArray[np.uint8]],
    frames: Sequence[int],
    rects: Sequence[Rect],
    loop: Loop,
) -> bytes:
    """Frames with their crops as a JPEG; those that the avatar plays are said to be."""
    played = range(loop.first, loop.first + loop.count)
    captions = [f"frame {i}" + (" (in the loop)" if i in played else "") for i in frames]
    out = io.BytesIO()
    contact_sheet(pictures, captions, rects).save(out, "JPEG", quality=88, subsampling=0)
    return out.getvalue()
