# SPDX-License-Identifier: Apache-2.0
"""report.md and report.json from whatever the parts have left."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_check import goals
from gpu_check.plan import Part

MOST_FILES, MOST_BYTES = 8, 16 << 20
"""Bounds of what a check leaves."""
Found = Mapping[str, Mapping[str, Any]]
"""Each part's document, as findings.py writes it."""


def values(found: Found) -> dict[str, Mapping[str, Any]]:
    """Each part's values; nothing of a dry run, which measures nothing."""
    return {name: part.get("values") or {} for name, part in found.items() if not part.get("dry")}


def markdown(parts: Sequence[Part], found: Found, about: Mapping[str, str]) -> str:
    """The report for people.

    Args:
        parts: that were to run.
        found: what they left; parts may be missing, and values within them.
        about: the run itself, name and words.
    """
    lines = ["# GPU check", ""]
    if any(part.get("dry") for part in found.values()):
        lines += ["**A dry run: nothing here was measured, nothing ran on a GPU.**", ""]
    lines += [f"- {name}: {words}" for name, words in about.items()]
    lines += ["", "## Goals", "", "| what | goal | found | |", "|---|---|---|---|"]
    for line in goals.table(values(found)):
        lines.append(f"| {line.what} | {line.goal} | {line.found} | {line.verdict} |")
    lines += ["", "## Parts", "", "| part | how it ended | s | checks |", "|---|---|---|---|"]
    for part in parts:
        lines.append(_summary(part, found.get(part.name)))
    for part in parts:
        lines += _section(part, found.get(part.name))
    return "\n".join(lines) + "\n"


def _summary(part: Part, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return f"| {part.name} | not begun | | |"
    checks = found.get("checks") or []
    bad = sum(not check.get("ok") for check in checks)
    words = f"{len(checks) - bad} of {len(checks)} good" if checks else ""
    ended = found.get("status", "not begun")
    reason = f" ({_cell(found['reason'])})" if found.get("reason") else ""
    return f"| {part.name} | {ended}{reason} | {found.get('seconds', 0):.0f} | {words} |"


def _section(part: Part, found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = ["", f"## {part.title}", ""]
    checks = found.get("checks") or []
    for check in sorted(checks, key=lambda c: bool(c.get("ok"))):
        mark = "ok" if check.get("ok") else "**FAILED**"
        detail = f": {_cell(check['detail'])}" if check.get("detail") else ""
        lines.append(f"- {mark} {check.get('name')}{detail}")
    lines += [""] if checks else []
    plain = {k: v for k, v in (found.get("values") or {}).items() if not isinstance(v, Mapping)}
    lines += [f"- {name}: {_cell(_words(value))}" for name, value in plain.items()]
    for name, value in (found.get("values") or {}).items():
        if isinstance(value, Mapping):
            lines += ["", f"### {name}", "", *_table(value)]
    return lines


def _table(value: Mapping[str, Any]) -> list[str]:
    """Rows of numbers as a table, others as a list; nested ones by their path."""
    rows = {k: v for k, v in value.items() if isinstance(v, Mapping)}
    lines = [f"- {k}: {_cell(_words(v))}" for k, v in value.items() if k not in rows]
    flat = {k: v for k, v in rows.items() if not any(isinstance(x, Mapping) for x in v.values())}
    columns = list(dict.fromkeys(name for row in flat.values() for name in row))
    if columns:
        lines += ["", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for name, row in flat.items():
            cells = (_cell(_words(row.get(column, ""))) for column in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, row in rows.items():
        if name not in flat:
            lines += ["", f"#### {name}", "", *_table(row)]
    return lines


def _words(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_words(v) for v in value)
    return str(value)


def _cell(words: str) -> str:
    return words.replace("|", "/").replace("\n", " ")


def write(folder: Path, parts: Sequence[Part], found: Found, about: Mapping[str, str]) -> None:
    """Write both reports."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [vars_of(line) for line in goals.table(values(found))]
    document = {"schema": 1, "about": dict(about), "goals": lines, "parts": dict(found)}
    (folder / "report.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "report.md").write_text(markdown(parts, found, about))


def vars_of(line: goals.Line) -> dict[str, str]:
    """A goal's line as a JSON object."""
    return {name: getattr(line, name) for name in ("what", "goal", "found", "verdict")}


def joined_logs(logs: Mapping[str, bytes], most: int = MOST_BYTES - (1 << 20)) -> bytes:
    """All parts' output in one file; of what is too long, the beginning and the end."""
    share = max(1, most // max(1, len(logs)))
    pieces = []
    for name, log in logs.items():
        if len(log) > share:
            cut = f"\n[... {len(log) - share} bytes left out ...]\n".encode()
            log = log[: share // 2] + cut + log[-(share // 2) :]
        pieces.append(f"======== {name}\n".encode() + log + b"\n")
    return b"".join(pieces)


def too_much(folder: Path) -> list[str]:
    """What of a folder exceeds the limits, in words."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    wrong = [
        f"{path.name} has {path.stat().st_size} bytes, more than {MOST_BYTES}"
        for path in files
        if path.stat().st_size > MOST_BYTES
    ]
    if len(files) > MOST_FILES:
        wrong.append(f"{len(files)} files, more than {MOST_FILES}")
    return wrong
