# SPDX-License-Identifier: Apache-2.0
"""What the documents show is run: programs, commands, and proxies before a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import Block, blocks
from sounds import write_wav
from talking import speech

from lipsync_fast.client.local import LocalServer

PATIENCE_S = 120.0
PYTHON = blocks("python")
NAME = "app.example.org"
"""What the proxies' configurations call the service."""


@pytest.fixture
def place(tmp_path: Path, tiny_avatar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording, and a home with an avatar; commands are this installation's."""
    write_wav(tmp_path / "speech.wav", speech(0.6)[:, None] / 32_768)
    shutil.copy(tmp_path / "speech.wav", tmp_path / "greeting.wav")
    home = tmp_path / "home"
    shutil.copytree(tiny_avatar, home / ".local/share/lipsync-fast/avatars/anna")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {
        "lipsync-fast": f'exec "{sys.executable}" -P -m lipsync_fast "$@"',
        "ffplay": "cat > played",
    }.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "LIPSYNC_FAST_UTTERANCES_DISK_MB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- programs
@pytest.mark.slow
def test_programs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed (extra dev)")
    files = []
    for number, block in enumerate(PYTHON):
        files.append(tmp_path / f"block{number}.py")
        files[-1].write_text(f"# {block}\n{block.text}")
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}/cache"]
    # In a folder of its own: the package is what is installed, whose own lines are not looked at.
    done = subprocess.run([*command, *files], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_programs_run(block: Block, place: Path, server: LocalServer) -> None:
    (place / "program.py").write_text(block.text)
    done = subprocess.run(
        [sys.executable, "-W", "error", "program.py", server.url, "speech.wav"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stderr) == (0, "")
    if "print(" in block.text:
        assert done.stdout.count("\n") >= 15, "0.6 s of speech are 15 frames"


def test_the_detector_of_the_documents_is_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from lipsync_fast.prepare.detectors import found_points, open_detector

    (block,) = [b for b in PYTHON if "class Mine" in b.text]
    (place / "mine.py").write_text(block.text)
    monkeypatch.syspath_prepend(place)
    detector = open_detector("mine:Mine", {"model": "face.bin"})
    pictures = [np.zeros((48, 64, 3), np.uint8)] * 2
    assert np.isnan(found_points(detector, pictures, 0, "mine:Mine")).all()


# ---------------------------------------------------------------- commands
RUN = re.compile(
    r"lipsync-fast (render speech\.wav.*(-o (video|out)\.mp4|frames/|-o - \|).*"
    r"|avatar (list|prerender\w*|unprerender|keygen|sign|verify) ?.*|doctor)"
)
"""The commands that are run here; the others need a server, hours, or files of somebody's."""


@pytest.mark.slow
def test_commands_run(place: Path) -> None:
    """In the order in which they stand, in one folder; --force where a document renders again."""
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    run = []
    for block in blocks("sh"):
        for line in block.text.splitlines():
            if not RUN.match(line) or "prerender anna hello.wav" in line:
                continue
            again = "video.mp4" in line or "out.mp4" in line
            command = line.replace("speech.wav", "speech.wav --force", 1) if again else line
            done = subprocess.run(
                ["bash", "-c", f"set -o pipefail\n{command}"],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert done.returncode == 0, (line, done.stderr)
            run.append(line)
    assert len(run) >= 12
    assert (place / "video.mp4").stat().st_size > 1000
    assert (place / "played").read_bytes()[:2] == b"\xff\xd8"
    assert len(list((place / "frames").glob("*.png"))) == 15
