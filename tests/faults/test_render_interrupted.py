# SPDX-License-Identifier: Apache-2.0
"""A render that is stopped, or whose reader goes: it ends at once and leaves nothing."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sounds import render_command, tone, write_wav

DEADLINE_S = 60


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("out", ["o.mp4", "frames"])
@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupted(
    tiny_avatar: Path, tmp_path: Path, out: str, sent: signal.Signals, code: int
) -> None:
    write_wav(tmp_path / "s.wav", tone(300))
    with subprocess.Popen(
        render_command(tiny_avatar, "s.wav", out),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    ) as process:
        wait_for(lambda: partial_bytes(tmp_path, out) > 0, process)
        process.send_signal(sent)
        _, said = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == code, said
    assert b"Traceback" not in said
    assert left(tmp_path) == ["s.wav"]


def test_under_nohup_the_end_of_the_terminal_is_none(tiny_avatar: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(300))
    with subprocess.Popen(
        render_command(tiny_avatar, "s.wav", "o.mp4"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN) and None,
    ) as process:
        wait_for(lambda: partial_bytes(tmp_path, "o.mp4") > 0, process)
        before = partial_bytes(tmp_path, "o.mp4")
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: partial_bytes(tmp_path, "o.mp4") > before, process)
        for _ in range(2):  # a second one does not cut the cleanup short
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143
    assert left(tmp_path) == ["s.wav"]


def test_the_reader_goes(tiny_avatar: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(30))
    with subprocess.Popen(
        render_command(tiny_avatar, "s.wav", "-"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(2) == b"\xff\xd8"
        process.stdout.close()
        said = process.stderr.read()
        process.wait(DEADLINE_S)
    assert process.returncode == 128 + signal.SIGPIPE
    assert said == b""


def test_a_full_device_behind_standard_output(tiny_avatar: Path, tmp_path: Path) -> None:
    write_wav(tmp_path / "s.wav", tone(1))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            render_command(tiny_avatar, "s.wav", "-"),
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


def heed_interrupts() -> None:
    """Undo what a shell does to commands in its background: they ignore Ctrl-C from birth."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def partial_bytes(folder: Path, out: str) -> int:
    """How much lies under the hidden name."""
    total = 0
    for path in folder.glob(f".{out}.partial-*"):
        files = path.iterdir() if path.is_dir() else [path]
        total += sum(f.stat().st_size for f in files)
    return total


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Until the condition holds; fails if the process ends first, or never gets there."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, "it ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
