# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from lipsync_fast.whole_files import write_whole


def test_a_file_is_there_at_once_with_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "a"
    (tmp_path / ".a.new").write_text("left by a program that was killed")
    for data, mode in ((b"one", 0o644), (memoryview(b"two"), 0o600)):
        before = os.umask(0o077)
        try:
            write_whole(file, data, mode)
        finally:
            os.umask(before)
        assert file.read_bytes() == data
        assert stat.S_IMODE(file.stat().st_mode) == mode
    assert [*tmp_path.iterdir()] == [file]


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    full, taken = tmp_path / "full", tmp_path / "taken"
    full.write_text("before")
    (tmp_path / ".full.new").symlink_to("/dev/full")
    (taken / "inside").mkdir(parents=True)
    for file in (full, taken, tmp_path / "none" / "a"):
        with pytest.raises(OSError, match=r"No space|directory"):
            write_whole(file, b"behind")
    assert full.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"full", "taken"}
