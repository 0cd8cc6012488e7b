# SPDX-License-Identifier: Apache-2.0
"""The part of docs/performance.md about the page in a browser."""

from __future__ import annotations

import json
from pathlib import Path

RESULT = Path(__file__).resolve().parent / "results" / "page.json"


def the_page() -> list[str]:
    """What the page shows and costs, as bench/page.py found it; else nothing."""
    if not RESULT.exists():
        return []
    found = json.loads(RESULT.read_text())
    machine, (before, behind) = found["machine"], found["load"]
    lines = [
        "",
        "## The page in a browser",
        "",
        f"`{found['command']}` on {machine['cores']} cores of {machine['processor']}, load average"
        f" {before:g} at the beginning and {behind:g} at the end, much of it of other programs,"
        f" which all figures but the bits suffer from: server and headless {found['browser']} on"
        f" one machine, without a GPU, the {found['avatar']} avatar, {found['seconds']:g} s of"
        " each. Bits are those of pictures, messages and, while it speaks, the sound, which takes"
        " 768 kbit/s (48 kHz, 16 bits). Picture and sound: how far from its sound a picture was"
        " drawn, in the middle, and at the 95th percentile without the sign. Processor time:"
        " seconds for each second, of the server's processes, of the renderer, which decodes and"
        " draws, and of all of Chromium.",
        "",
        "| pictures | | frames/s, dropped | kbit/s | picture and sound, ms | voice to picture, ms"
        " | processor: server, renderer, Chromium |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, phases in found["rows"].items():
        for phase, row in phases.items():
            spoken = ["–", "–"]
            if "sync_ms" in row:
                spoken = [
                    f"{row['sync_ms']:.1f}, {row['sync_p95_ms']:.1f}",
                    f"{row['latency_ms']:.0f}",
                ]
            lines.append(
                f"| {name} | {phase} | {row['fps']:.1f}, {row['dropped']:.0f}"
                f" | {row['kbit_s']:,.0f} | {spoken[0]} | {spoken[1]}"
                f" | {row['server_cpu']:.2f}, {row['renderer_cpu']:.2f},"
                f" {row['chromium_cpu']:.2f} |"
            )
    return lines
