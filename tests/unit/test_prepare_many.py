# SPDX-License-Identifier: Apache-2.0
"""Videos over processes, where the system starts fewer of them than are asked for, or none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from lipsync_fast.prepare import many
from lipsync_fast.prepare.request import Failure, Progress, Request, Result

WORKER = """
import json, sys
name = json.loads(sys.stdin.readline())["name"]
print(json.dumps({"type": "failure", "name": name, "video": "", "reason": "seen", "kept": False}))
"""


class Watch:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def begun(self, request: Request) -> None:
        self.seen.append(f"begun {request.name}")

    def progressed(self, request: Request, progress: Progress) -> None:
        raise AssertionError("none is made")

    def ended(self, request: Request, outcome: Result | Failure) -> None:
        assert isinstance(outcome, Failure)
        self.seen.append(f"ended {request.name}")

    def tick(self) -> None:
        pass


def requests(folder: Path, *names: str) -> list[Request]:
    return [
        Request(
            name=name,
            video=str(folder / f"{name}.mp4"),
            out=str(folder),
            detector="none",
            consent="nobody",
            licence="CC0-1.0",
            stated_by="a test",
        )
        for name in names
    ]


def no_process(*_: Any, **__: Any) -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def test_where_no_process_can_be_started_each_video_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many.subprocess, "Popen", no_process)
    watch, before = Watch(), len(os.listdir("/proc/self/fd"))
    outcomes = many.prepare_many(requests(tmp_path, "a", "b"), 2, watch)
    why = "no process can be started for it: Resource temporarily unavailable"
    assert [(o.name, o.reason) for o in outcomes if isinstance(o, Failure)] == [
        ("a", why),
        ("b", why),
    ]
    assert watch.seen == ["begun a", "ended a", "begun b", "ended b"]
    assert len(os.listdir("/proc/self/fd")) == before


def test_where_few_can_be_started_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    refused = 0
    start = subprocess.Popen

    def one_at_a_time(_: Any, **named: Any) -> subprocess.Popen[bytes]:
        nonlocal refused
        if started and started[-1].returncode is None:
            refused += 1
            no_process()
        started.append(start([sys.executable, "-c", WORKER], **named))
        return started[-1]

    monkeypatch.setattr(many.subprocess, "Popen", one_at_a_time)
    outcomes = many.prepare_many(requests(tmp_path, "a", "b", "c"), 3, Watch())
    assert [(o.name, o.reason) for o in outcomes if isinstance(o, Failure)] == [
        ("a", "seen"),
        ("b", "seen"),
        ("c", "seen"),
    ]
    assert len(started) == 3
    assert refused >= 2


def test_what_a_worker_said_last_needs_no_room_on_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log is no file in the temporary folder: that may be what is full."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    start = subprocess.Popen

    def dying(_: Any, **named: Any) -> subprocess.Popen[bytes]:
        return start([sys.executable, "-c", "import sys; sys.exit('no room')"], **named)

    monkeypatch.setattr(many.subprocess, "Popen", dying)
    (outcome,) = many.prepare_many(requests(tmp_path, "a"), 1, Watch())
    assert isinstance(outcome, Failure)
    assert outcome.reason == "its process ended unexpectedly (status 1): no room"
