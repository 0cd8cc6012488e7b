# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast demo``: the shipped recording and avatar give the files it names, also live."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
from PIL import Image


def test_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lipsync_fast", "demo", "--out", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "CI": "true"},
    )
    assert done.returncode == 0, done.stderr
    video, sheet = tmp_path / "demo" / "demo.mp4", tmp_path / "demo" / "demo.png"
    assert str(video) in done.stdout
    assert str(sheet) in done.stdout
    assert "x real time" in done.stdout
    with av.open(str(video), options={"export_xmp": "1"}) as container:
        assert "digitalsourcetype/trainedAlgorithmicMedia" in container.metadata["xmp"]
    with Image.open(sheet) as picture:
        assert min(picture.size) > 300
    live = tmp_path / "demo" / "live.mp4"
    assert str(live) in done.stdout
    assert _frames(live) == _frames(video)


def _frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))
