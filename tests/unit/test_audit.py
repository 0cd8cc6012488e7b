# SPDX-License-Identifier: Apache-2.0
"""Who was there is written down: whole, in order, wherever the file is, whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from lipsync_fast import audit as module
from lipsync_fast.audit import Audit


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_for_each_event(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(str(file), "front-1")
    audit.write("begun", session="front-1/1", subject="ann\na", key="", port=0, avatars=[])
    audit.write("ended", subject="\ud800")
    audit.close()
    first, second = lines(file)
    assert first.pop("time").endswith("Z")
    assert first == {
        "process": "front-1",
        "event": "begun",
        "session": "front-1/1",
        "subject": "ann\na",
        "port": 0,
    }
    assert second["event"] == "ended"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_a_file_nothing_is_done() -> None:
    audit = Audit("", "front-1")
    audit.write("begun")
    audit.refused("wrong_token", 401, "192.0.2.1")
    audit.close()


def test_a_file_that_was_moved_away_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_S", -1.0)
    file, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit = Audit(str(file), "front-1")
    audit.write("one")
    until_there(file, 1)
    file.rename(old)
    audit.write("two")
    audit.close()
    assert [line["event"] for line in lines(old)] == ["one"]
    assert [line["event"] for line in lines(file)] == ["two"]


def until_there(file: Path, count: int) -> None:
    while not file.exists() or len(file.read_bytes().splitlines()) < count:
        pass


def test_a_full_disk_costs_lines_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.jsonl"
    room, write = [30], os.write

    def fills_up(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(room[0], len(data))
        room[0] -= taken
        return write(fd, data[:taken])

    monkeypatch.setattr(os, "write", fills_up)
    writer = module._File(str(file))
    writer.add([b'{"event": "one", "why": "a line that is long"}\n'])
    writer.add([b'{"event": "two"}\n', b'{"event": "three"}\n'])
    assert writer.lost == 3
    room[0] = 10_000
    writer.add([b'{"event": "four"}\n'])
    writer.close()
    torn, *whole = file.read_text().splitlines()
    assert torn.startswith('{"event": "one"')
    assert [json.loads(line) for line in whole] == [
        {"event": "lost", "lines": 3},
        {"event": "four"},
    ]


def test_a_place_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    audit = Audit(str(tmp_path / "none" / "audit.jsonl"), "front-1")
    for _ in range(100):
        audit.write("begun")
    audit.close()


def test_who_does_not_write_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "audit.jsonl")  # nobody reads it
    monkeypatch.setattr(module, "MOST_WAITING", 10)
    audit = Audit(str(tmp_path / "audit.jsonl"), "front-1")
    for _ in range(2 * module.MOST_BYTES // 50):
        audit.write("begun")
    audit.close(patience_s=0.01)
    assert audit._file is not None
    assert audit._file.lost > 0


def test_refusals_are_told_once_a_minute_for_each_network(tmp_path: Path) -> None:
    now, file = [0.0], tmp_path / "audit.jsonl"
    audit = Audit(str(file), "front-1", lambda: now[0])
    for _ in range(5):
        audit.refused("wrong_token", 401, "192.0.2.1")
    audit.refused("expired", 401, "192.0.2.1", "anna")
    for k in range(3):
        audit.refused("wrong_token", 401, f"2001:db8::{k}")
    now[0] = 61.0
    audit.refused("wrong_token", 401, "192.0.2.1")
    for k in range(module.MOST_REFUSED + 10):
        audit.refused("host", 403, f"10.{k >> 16}.{k >> 8 & 255}.{k & 255}")
    assert len(audit._refused) <= module.MOST_REFUSED
    audit.close()
    told = [(e["reason"], e["address"], e["times"]) for e in lines(file) if e["reason"] != "host"]
    assert told == [
        ("wrong_token", "192.0.2.1", 1),
        ("expired", "192.0.2.1", 1),
        ("wrong_token", "2001:db8::0", 1),
        ("wrong_token", "192.0.2.1", 4),
        ("wrong_token", "2001:db8::0", 2),
        ("wrong_token", "192.0.2.1", 1),
    ]
