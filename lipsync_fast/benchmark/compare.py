# SPDX-License-Identifier: Apache-2.0
"""Two runs of the benchmark side by side: what has changed, and what is noise.

A change counts where the rounds of both runs do not overlap. One round each says how much, and
nothing about noise.
"""

from __future__ import annotations

from lipsync_fast.benchmark.rows import Report, Row, Spread, by_name

FEW = 3
"""Rounds from which on their spread says something."""


def compare(before: Report, after: Report) -> str:
    """A table of all that both have measured."""
    lines = [
        f"before: {before.version} {before.commit} {before.date}, {_machine(before)}",
        f"after:  {after.version} {after.commit} {after.date}, {_machine(after)}",
    ]
    if _machine(before) != _machine(after):
        lines.append("These are different machines: what differs may be theirs.")
    lines += ["", "| what | before | after | change | |", "|---|---|---|---|---|"]
    theirs, ours = by_name(before.rows), by_name(after.rows)
    for key in theirs:
        if key in ours:
            lines.append(_line(key[1], theirs[key], ours[key]))
    for title, missing in (
        ("only before", [k[1] for k in theirs if k not in ours]),
        ("only after", [k[1] for k in ours if k not in theirs]),
    ):
        if missing:
            lines += ["", f"{title}: {', '.join(missing)}"]
    return "\n".join(lines) + "\n"


def _machine(report: Report) -> str:
    return f"{report.machine.get('cores')} cores of {report.machine.get('processor')}"


def _line(name: str, before: list[Row], after: list[Row]) -> str:
    a = Spread.of(row.frames_per_s for row in before)
    b = Spread.of(row.frames_per_s for row in after)
    change = f"{b.median / a.median - 1:+.1%}" if a.median else "?"
    return f"| {name} | {_words(a)} | {_words(b)} | {change} | {verdict(a, b)} |"


def _words(spread: Spread) -> str:
    if spread.rounds == 1:
        return f"{spread.median:.2f}"
    return f"{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})"


def verdict(before: Spread, after: Spread) -> str:
    """Whether the difference is more than noise."""
    if min(before.rounds, after.rounds) < FEW:
        return f"too few rounds to say ({min(before.rounds, after.rounds)})"
    if after.least > before.most:
        return "faster"
    if after.most < before.least:
        return "slower"
    return "noise"
