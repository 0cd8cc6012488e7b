# SPDX-License-Identifier: Apache-2.0
"""What the tests of hostile files share: taking them in aside, measured, and watching the disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

CHILD = Path(__file__).with_name("trust_child.py")
SECONDS, KIB = 5.0, 160 << 10
"""Processor time for each file, and how much all of them together make a process grow."""
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What became of a file that was taken in."""

    way: str
    path: str
    kind: str
    message: str
    cpu_s: float
    grown_kib: int


def taken_in(
    good: tuple[str, Path], jobs: Sequence[tuple[str, Path]], folder: Path
) -> list[Outcome]:
    """Have a process take in files in several ways; a good one first.

    Asserts that it ends by itself, in bounded time and memory, and that nothing in ``folder`` was
    changed or added.
    """
    file = folder.with_name(f"{folder.name}.jobs")
    file.write_text(json.dumps([[way, str(path)] for way, path in (good, *jobs)]))
    before = everything(folder)
    done = subprocess.run(
        [sys.executable, "-P", str(CHILD), str(file)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        cwd=file.parent,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    outcomes = [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
    assert [(o.way, o.path) for o in outcomes] == [(way, str(path)) for way, path in jobs]
    assert everything(folder) == before
    for outcome in outcomes:
        assert outcome.cpu_s < SECONDS, outcome
        assert outcome.grown_kib < KIB, outcome
    return outcomes


def refused(outcome: Outcome, *words: str) -> None:
    """It was refused, by one line that names the file and has ``words``."""
    assert outcome.kind, f"was taken: {outcome}"
    assert len(outcome.message.splitlines()) == 1, outcome
    assert len(outcome.message) < 700 + 2 * len(outcome.path), outcome
    assert "0x" not in outcome.message, outcome
    if "\n" not in outcome.path and outcome.way != "listed":
        assert outcome.path in outcome.message, outcome
    for word in words:
        assert word in outcome.message, outcome


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """All that lies in a folder: size and time of change of each."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[str(path)] = about.st_size, 0 if path.is_dir() else about.st_mtime_ns
    return found


def linked(folder: Path, copy: Path) -> Path:
    """A copy of a folder that takes no room; ``replace`` what is to differ."""
    return Path(shutil.copytree(folder, copy, copy_function=os.link))


def replace(file: Path, data: bytes) -> None:
    """Other content, as a new file: the old one may lie in other folders, too."""
    file.unlink(missing_ok=True)
    file.write_bytes(data)


def edit(package: Path, **fields: Any) -> None:
    """Change a package's manifest."""
    file = package / "manifest.json"
    manifest = msgspec.json.decode(file.read_bytes())
    replace(file, msgspec.json.encode(manifest | fields))


def change(package: Path, name: str, data: bytes) -> None:
    """Replace a member and let the manifest agree, as somebody hostile would."""
    replace(package / name, data)
    files = msgspec.json.decode((package / "manifest.json").read_bytes())["files"]
    files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(package, files=files)
