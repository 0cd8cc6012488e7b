# SPDX-License-Identifier: Apache-2.0
"""What the documents show is run: programs, commands, and proxies before a real server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from documents import ROOT, RUNNABLE, Block, blocks
from sounds import write_wav
from talking import speech

from lipsync_fast.client.local import LocalServer

PATIENCE_S = 480.0
PYTHON = blocks("python")
NAME = "app.example.org"
"""What the proxies' configurations call the service."""


@pytest.fixture
def place(tmp_path: Path, tiny_avatar: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recording, and a home with an avatar; commands are this installation's."""
    write_wav(tmp_path / "speech.wav", speech(0.6)[:, None] / 32_768)
    for name in ("greeting.wav", "hello.wav"):
        shutil.copy(tmp_path / "speech.wav", tmp_path / name)
    (tmp_path / "calls.jsonl").write_text('{"audio": "speech.wav"}\n')
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
SCRIPTS = {
    path: "".join(block.text for block in blocks(RUNNABLE) if block.path == path)
    for path in dict.fromkeys(block.path for block in blocks(RUNNABLE))
}
"""What is run of each document, in the order in which it stands there."""
MADE = {
    "README.md": {"video.mp4", "frames/000014.png", "played", "videos/speech.mp4"},
    "docs/avatars.md": {"studio.key.pub"},
    "docs/scenarios/development.md": {"video.mp4"},
    "docs/scenarios/several-gpus.md": {"status.json"},
    "docs/scenarios/twenty-avatars.md": {"avatars/anna/manifest.json"},
    "docs/scenarios/cloud.md": {"keys.json"},
    "docs/scenarios/kubernetes.md": {"faces.yaml", "faces-gpu.yaml"},
    "docs/scenarios/moving.md": {"serve.toml", "video.mp4", "videos/speech.mp4"},
}
"""What lies there then."""


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S + 120)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_run(path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are on ports of their own, with a small avatar; what is there already is replaced."""
    pytest.importorskip("cryptography", reason="the extra sign is not installed")
    script = SCRIPTS[path]
    if "helm " in script and shutil.which("helm") is None:
        pytest.skip("helm is not installed; make test-deploy brings it")
    (place / "deploy").symlink_to(ROOT / "deploy")
    for name, value in {
        "LISTEN_PORTS": "0",
        "LISTEN_HTTP_PORT": "0",
        "AVATARS_DEFAULT": "anna",
        "ENGINES_THREADS": "1",
    }.items():
        monkeypatch.setenv(f"LIPSYNC_FAST_{name}", value)
    with tempfile.TemporaryDirectory(prefix="lipsync-") as short:  # a socket's path must be
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        done, said = bash(f"set -euo pipefail\n{script}", PATIENCE_S)
    assert done == 0, said[-4000:]
    for name in MADE.get(path.relative_to(ROOT).as_posix(), ()):
        assert (place / name).stat().st_size > 100, name


def bash(script: str, seconds: float) -> tuple[int | None, str]:
    """Run a script; what it has started ends with it, or when its time is over.

    Returns:
        Its exit status, None where it took too long; what it printed.
    """
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            ["bash", "-c", script],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = process.wait(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM if status is not None else signal.SIGKILL)
        process.wait()
        out.seek(0)
        return status, out.read()
