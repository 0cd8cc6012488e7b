# SPDX-License-Identifier: Apache-2.0
"""The long part of preparing: three threads, and the same result however they are timed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from videos import demo_landmarks, demo_pictures, write_video

from lipsync_fast.errors import MediaError, PrepareError
from lipsync_fast.media.video import Video
from lipsync_fast.prepare import look as look_module
from lipsync_fast.prepare.ahead import Ahead
from lipsync_fast.prepare.look import look
from lipsync_fast.prepare.parts import Part, WorkFolder
from lipsync_fast.prepare.request import Progress, Request

FRAMES = 120


def test_items_come_in_their_order_and_no_more_than_so_many_are_made() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(30):
            made.append(i)
            yield i

    most = 0
    with Ahead(items(), 4) as ahead:
        for taken, item in enumerate(ahead):
            time.sleep(0.002)
            assert item == taken
            most = max(most, len(made) - taken - 1)
    assert len(made) == 30
    assert most <= 4


def test_what_goes_wrong_is_raised_behind_what_came_before() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise MediaError("broken here")

    got: list[int] = []
    with Ahead(items(), 8) as ahead, pytest.raises(MediaError, match="broken here"):
        got.extend(iter(ahead))
    assert got == [0, 1, 2]


def test_nobody_goes_on_behind_the_end() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(1000):
            made.append(i)
            yield i

    with Ahead(items(), 3) as ahead:
        assert next(iter(ahead)) == 0
    count = len(made)
    assert not any(thread.name == "ahead" for thread in threading.enumerate())
    ahead.close()
    assert len(made) == count <= 5


class Timed:
    """A detector that takes its time."""

    def __init__(self, pause: float) -> None:
        self.points, self.pause = demo_landmarks(FRAMES), pause

    def detect(self, pictures: Any, first: int) -> Any:
        time.sleep(self.pause)
        return self.points[first : first + len(pictures)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So slow that pictures are shown twice."""
    folder = tmp_path_factory.mktemp("look")
    return write_video(folder / "v.mkv", demo_pictures(FRAMES * 3 // 5), rate=15)


def looked_at(video: Path, out: Path, detector: Any) -> list[Part]:
    request = Request(
        video=str(video), name="v", out=str(out), consent="-", licence="-", stated_by="-",
        detector="x:y",
    )  # fmt: skip
    seen: list[Progress] = []
    with Video(video) as opened, WorkFolder(request.work) as work:
        work.begin("a", "b")
        last = look(request, opened, detector, work, seen.append)
        found = list(work.parts())
    assert last == found[-1]
    assert [one.done for one in seen] == list(range(1, FRAMES + 1))
    return found


def test_the_same_whoever_is_slow(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = looked_at(video, tmp_path / "plain", Timed(0))
    assert [part.count for part in wanted] == [50, 50, 20]
    assert looked_at(video, tmp_path / "detector", Timed(0.05)) == wanted

    coded = look_module._code

    def slowly(*given: Any) -> Any:
        time.sleep(0.005)
        return coded(*given)

    monkeypatch.setattr(look_module, "_code", slowly)
    assert looked_at(video, tmp_path / "coder", Timed(0)) == wanted


def test_a_detector_that_fails_leaves_no_thread_and_keeps_whole_parts(
    video: Path, tmp_path: Path
) -> None:
    class Failing(Timed):
        def detect(self, pictures: Any, first: int) -> Any:
            if first >= 100:
                raise RuntimeError("no more")
            return super().detect(pictures, first)

    with pytest.raises(PrepareError, match="failed at frame 100"):
        looked_at(video, tmp_path, Failing(0))
    assert not {"ahead", "code_0"} & {thread.name for thread in threading.enumerate()}
    assert len(list(tmp_path.glob(".v.preparing/*.part"))) >= 1


def test_a_part_that_cannot_be_written_is_told(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: WorkFolder, part: Part) -> None:
        raise OSError(28, "No space left on device", "x.part")

    monkeypatch.setattr(WorkFolder, "add", full)
    with pytest.raises(OSError, match="No space left"):
        looked_at(video, tmp_path, Timed(0))


def test_landmarks_nan_between(video: Path, tmp_path: Path) -> None:
    detector = Timed(0)
    detector.points[30:35] = np.nan
    [first, *_] = looked_at(video, tmp_path, detector)
    assert np.flatnonzero(np.isnan(first.landmarks()).any(axis=(1, 2))).tolist() == [*range(30, 35)]
