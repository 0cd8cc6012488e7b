# SPDX-License-Identifier: Apache-2.0
"""``lipsync-fast demo``: the shipped recording and avatar give the two files it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import pytest
from PIL import Image

from lipsync_fast.avatars.library import shipped_folder
from lipsync_fast.cli.demo import demo_recording
from lipsync_fast.errors import MediaError


def test_demo(tmp_path: Path) -> None:
    try:
        demo_recording()
    except MediaError as error:
        pytest.skip(str(error))
    if not any(shipped_folder().glob("demo*")):
        pytest.skip("this checkout has no demo avatar")
    done = subprocess.run(
        [sys.executable, "-m", "lipsync_fast", "demo", "--out", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
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
