# SPDX-License-Identifier: Apache-2.0
"""What of a video is done already: its working folder, ``.NAME.preparing`` beside the result.

    lock                held by the process that works here
    state.json          ``State``: for what all below was made, and when it was begun
    000000.part …       50 frames each: found landmarks, coded frames, small grey pictures
    000350.last         the rest, up to 50
    made/               the finished folder under construction

Each file gets its name only when it is whole and on the disc, so that a process may be killed at
any time: what is there is right, and at most 50 frames are worked on again.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import PrepareError
from lipsync_fast.whole_files import sync_all, write_whole

PART_FRAMES = 50
_ENDING, _LAST, _STATE = ".part", ".last", "state.json"
_PATIENCE_S = 3.0


class State(msgspec.Struct, frozen=True, kw_only=True):
    """For what the parts were made.

    Attributes:
        part_key: hash of the video and of all options that change what is in a part.
        key: the same with all other options.
        date: when ``key`` was first asked for (ISO 8601): the date of the statements.
    """

    part_key: str
    key: str
    date: str


class Part(msgspec.Struct, kw_only=True):
    """Up to 50 frames that follow each other.

    Attributes:
        first: number of the first one.
        last: whether the video ends with this part (then it may be shorter than 50).
        points: n x K x 2 float32, as bytes; NaN where there is no face.
        jpegs: the frames, coded.
        greys: n x h x w uint8: small grey pictures, as bytes.
        begins: the video's first time stamp in seconds, a fraction as text.
        size: width and height of the frames.
    """

    first: int
    last: bool
    count: int
    point_count: int
    points: bytes
    jpegs: list[bytes]
    grey_size: tuple[int, int]
    greys: bytes
    begins: str
    size: tuple[int, int]
    rotation: int
    warnings: list[str] = []

    def landmarks(self) -> NDArray[np.float32]:
        """n x K x 2."""
        return np.frombuffer(self.points, np.float32).reshape(self.count, self.point_count, 2)

    def pictures(self) -> NDArray[np.uint8]:
        """n x h x w."""
        return np.frombuffer(self.greys, np.uint8).reshape(self.count, *self.grey_size)


def today() -> str:
    """The date in UTC, or that of SOURCE_DATE_EPOCH for results that do not depend on the day."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    stamp = int(given) if given.isdigit() else int(time.time())
    return datetime.datetime.fromtimestamp(stamp, datetime.UTC).date().isoformat()


class WorkFolder:
    """The working folder, locked.

    Raises:
        PrepareError: another process works there.
        OSError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        end = time.monotonic() + _PATIENCE_S  # one whose parent was killed is about to leave
        while not _locked(self._lock):
            if time.monotonic() > end:
                os.close(self._lock)
                raise PrepareError(f"{path}: another process is preparing this video now")
            time.sleep(0.05)
        path.mkdir(exist_ok=True)  # whoever was waited for may have removed it

    def __enter__(self) -> WorkFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def made(self) -> Path:
        """Where the finished folder is put together."""
        return self.path / "made"

    def begin(self, part_key: str, key: str) -> State:
        """The state to go on from; parts that were made of something else are removed."""
        shutil.rmtree(self.made, ignore_errors=True)
        state = None
        with contextlib.suppress(OSError, msgspec.DecodeError):
            state = msgspec.json.decode((self.path / _STATE).read_bytes(), type=State)
        if state is not None and state.key == key and state.part_key == part_key:
            return state
        if state is None or state.part_key != part_key:
            (self.path / _STATE).unlink(missing_ok=True)
            for file in self.path.iterdir():
                if file.suffix in (_ENDING, _LAST):
                    file.unlink()
        state = State(part_key=part_key, key=key, date=today())
        write_whole(self.path / _STATE, msgspec.json.encode(state))
        return state

    def done(self) -> tuple[int, bool]:
        """How many frames are in full parts, and whether the video's last part is there too."""
        frames = 0
        while self._file(frames).exists():
            frames += PART_FRAMES
        return frames, self._file(frames, last=True).exists()

    def add(self, part: Part) -> None:
        """Keep a part; it is on the disc when this returns."""
        write_whole(self._file(part.first, last=part.last), msgspec.msgpack.encode(part))

    def parts(self) -> Iterator[Part]:
        """All parts in order, once the last one is there."""
        frames, _ = self.done()
        for first in range(0, frames, PART_FRAMES):
            yield msgspec.msgpack.decode(self._file(first).read_bytes(), type=Part)
        yield msgspec.msgpack.decode(self._file(frames, last=True).read_bytes(), type=Part)

    def last(self) -> Part:
        """The last part."""
        frames, _ = self.done()
        return msgspec.msgpack.decode(self._file(frames, last=True).read_bytes(), type=Part)

    def newest(self) -> Part | None:
        """The part behind which it goes on; None where it begins, or where all is done."""
        frames, whole = self.done()
        if whole or not frames:
            return None
        return msgspec.msgpack.decode(self._file(frames - PART_FRAMES).read_bytes(), type=Part)

    def _file(self, first: int, *, last: bool = False) -> Path:
        return self.path / f"{first:06d}{_LAST if last else _ENDING}"

    def remove(self) -> None:
        """Nothing is left to do here."""
        shutil.rmtree(self.path, ignore_errors=True)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Wait until all files of a folder are on the disk."""
    sync_all([*(p for p in folder.rglob("*") if p.is_file()), folder])
