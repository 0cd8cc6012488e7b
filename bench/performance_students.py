# SPDX-License-Identifier: Apache-2.0
"""The part of docs/performance.md about students, as bench/distill.py found it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = Path(__file__).resolve().parent / "results" / "distill.json"


def students() -> list[str]:
    """What narrower networks gain, and what one that was taught has lost; else nothing."""
    if not RESULT.exists():
        return []
    found = json.loads(RESULT.read_text())
    machine = found["machine"]
    lines = [
        "",
        "## Students",
        "",
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, load average"
        f" {machine['load_average'][0]:g} by other programs. How fast networks of other sizes are,"
        " with random weights, by processor time, in turns ([avatar distill]"
        "(avatars.md#teach-a-faster-one)); all make the whole region:",
        "",
        "| width, region | frames/s | times the reference's |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['width']}, {row['region']} | {row['frames_per_s']:.1f} | {row['times']:.1f} |"
        for row in found["random_weights"]
    ]
    return lines + (_taught(found) if "taught" in found else [])


def _taught(found: dict[str, Any]) -> list[str]:
    """One that was taught, by sounds of the voice that it learnt from and of others."""
    taught = found["taught"]
    s = taught["student"]
    lines = [
        "",
        f"The {taught['avatar']} avatar (width {s['teacher_width']}, region"
        f" {s['teacher_region']}) taught one of width {taught['width']} at region"
        f" {taught['region']}, in {taught['steps']} steps, {taught['minutes']:.0f} minutes by the"
        f" clock and {taught['cpu_minutes_of_this_run']:.0f} of processor time, all else included:"
        f" {s['frames_per_s']:.0f} frames/s in place of {s['teacher_frames_per_s']:.0f}. Over"
        f" {taught['held_frames']} frames that it had not learnt from:",
        "",
        "| sound that it had not learnt from | grey levels off, where sound moves the picture"
        " | r | swing | sharpness |",
        "|---|---|---|---|---|",
        f"| of the recording that it learnt from | {s['difference']:.2f} | {s['r']:.3f}"
        f" | {s['swing']:.0%} | {s['sharpness']:.0%} |",
    ]
    lines += [
        f"| voice {row['voice']} | {row['difference']:.2f} | {row['r']:.3f} | {row['swing']:.0%}"
        f" | {row['sharpness']:.0%} |"
        for row in found["other_voices"]
    ]
    return lines
