# SPDX-License-Identifier: Apache-2.0
"""Nothing is written, asked for or connected to but what docs/operations.md names."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
from touching import can_strace

CHECKOUT = Path(__file__).resolve().parents[2]
SECTION = "## What it writes, and whom it calls\n"
pytestmark = pytest.mark.slow


def documented(world: Path) -> list[re.Pattern[str]]:
    """The paths that are named there, and their folders, for processes that live in ``world``."""
    section = (CHECKOUT / "docs" / "operations.md").read_text().partition(SECTION)[2]
    table = section.partition("\n\nNo name is asked")[0]
    named: set[str] = set()
    for row in table.splitlines():
        if not row.startswith("| `"):
            continue
        for path in re.findall(r"`([^`]+)`", row.split("|")[1]):
            named.add(path.replace("….sqlite", "~/.local/state/lipsync-fast/utterances.sqlite"))
    assert len(named) > 10, "the list is not where it was"
    named |= {str(parent) for path in named for parent in PurePosixPath(path).parents} - {".", "/"}
    return [re.compile(_pattern(path, world)) for path in named]


def _pattern(path: str, world: Path) -> str:
    places = {"~": "home", "$XDG_RUNTIME_DIR": "run", "$TMPDIR": "tmp"}
    first, slash, rest = path.partition("/")
    if first in places:
        path = f"{world / places[first]}{slash}{rest}"
    path = path.replace("OUT", "out.mp4")
    pattern = re.escape(path).replace("…", "[^/]*")
    return re.sub(r"\b(PORT|UID|PID|N)\b", r"\\d+", pattern)


def strangers(world: Path, notes: list[str]) -> Iterator[str]:
    """What was noted and is not named."""
    known = documented(world)
    for note in sorted(set(notes)):
        kind, what = note.split(" ", 1)
        if kind in ("ask", "connect"):
            if kind == "ask" and _is_loopback(what):
                continue
            yield note
            continue
        plain = what.removeprefix(f"{world / 'work'}/")
        if any(pattern.fullmatch(plain) for pattern in known):
            continue
        yield note


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def watched(world: Path, way: str, before: tuple[str, ...] = ()) -> list[str]:
    """What ``render``, ``doctor`` and ``serve`` did, and the files that they have left."""
    world.mkdir()
    script = CHECKOUT / "tests" / "touching.py"
    done = subprocess.run(
        [*before, sys.executable, "-P", str(script), str(world), way],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    log = (world / "log").read_text()
    foreign = [line for line in log.splitlines() if not line.startswith('{"time":')]
    assert not foreign, "only this program writes to the log"
    assert "elemetry" not in log
    notes = world / "notes"
    seen = notes.read_text().splitlines() if notes.exists() else []
    mine = {"sound.wav", "server.toml"}
    left = [p for f in ("home", "tmp", "run", "work") for p in (world / f).rglob("*")]
    return [*seen, *(f"write {p}" for p in left if p.name not in mine)]


@pytest.fixture
def world() -> Iterator[Path]:
    """A place with a short name: a Unix socket's may have 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="lsf-", dir="/tmp") as folder:
        yield Path(folder) / "w"


def test_what_is_left_and_what_the_c_library_is_asked_for(world: Path) -> None:
    way = "plain" if shutil.which("cc") is None else "preload"
    notes = watched(world, way)
    assert f"write {world}/home/.local/state/lipsync-fast/utterances.sqlite" in notes
    if way == "preload":
        assert any(note.startswith("write .out.mp4.partial-") for note in notes), "it was watched"
        assert any(note.startswith("local ") for note in notes)
    assert list(strangers(world, notes)) == []


@pytest.mark.skipif(not can_strace(), reason="no strace here, or no network of one's own")
def test_what_the_system_is_asked_for(world: Path) -> None:
    notes = watched(world, "strace", ("unshare", "-n"))
    assert any(".out.mp4.partial-" in note for note in notes), "it was watched"
    assert any(note.startswith("local ") for note in notes)
    assert list(strangers(world, notes)) == []


def test_a_stranger_is_noticed(tmp_path: Path) -> None:
    home = tmp_path / "home"
    foreign = [
        f"write {home}/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid",
        "connect 10.0.0.53",
        "ask mobile.events.example",
        "local /run/other.sock",
        "write /etc/passwd",
    ]
    fine = [
        f"write {home}/.local/state/lipsync-fast/utterances.sqlite-wal",
        f"write {home}/.local/state",
        "write /dev/null",
        f"local {tmp_path}/run/lipsync-fast-123/control",
        "ask 127.0.0.1",
    ]
    assert sorted(strangers(tmp_path, foreign + fine)) == sorted(foreign)
