# SPDX-License-Identifier: Apache-2.0
"""Commands of a user whom nobody knows: without a home, and without an entry among the users."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

NOBODY = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
"""Inside, the user has a number that no entry has; files are as they are."""


def environ(tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}


def possible() -> bool:
    """Whether the system lets one do that."""
    try:
        return subprocess.run([*NOBODY, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not possible(), reason="no user namespaces here")


def command(*words: str) -> list[str]:
    return [*NOBODY, sys.executable, "-P", "-m", "lipsync_fast", *words]


def test_avatars_are_listed_and_a_recording_is_rendered(tiny_avatar: Path, tmp_path: Path) -> None:
    import wave

    sound = tmp_path / "a.wav"
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 6_400))
    for words in (
        ("avatar", "list"),
        ("render", str(sound), "--avatar", str(tiny_avatar), "-o", str(tmp_path / "a.mp4")),
    ):
        done = subprocess.run(
            command(*words), capture_output=True, text=True, timeout=120, check=False,
            env=environ(tmp_path), cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 1_000


def test_a_server_serves(tiny_avatar: Path, tmp_path: Path) -> None:
    config = tmp_path / "serve.toml"
    config.write_text(
        f"[listen]\nports = [0]\nhttp_port = 0\n[engines]\nspares = 0\n"
        f"[avatars]\nfolders = [{json.dumps(str(tiny_avatar.parent))}]\n"
        f"default = {json.dumps(tiny_avatar.name)}\n"
    )
    log = tmp_path / "log"
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command("serve", "--config", str(config)), stdout=out, stderr=out, cwd=tmp_path,
            env=environ(tmp_path),
        ) as running,
    ):  # fmt: skip
        try:
            end = time.monotonic() + 60
            while "\npage " not in f"\n{log.read_text()}":
                assert running.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.05)
            (page,) = [s for s in log.read_text().splitlines() if s.startswith("page ")]
            with urllib.request.urlopen(page.split()[1] + "health", timeout=30) as answer:
                assert answer.status == 200
        finally:
            running.send_signal(signal.SIGTERM)
            running.wait(60)
    assert running.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
