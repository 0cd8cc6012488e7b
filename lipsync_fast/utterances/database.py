# SPDX-License-Identifier: Apache-2.0
"""The SQLite file in which utterances are kept: opened, begun anew where it is damaged, bounded.

A transaction is whole or not there (WAL). A file that turns out to be damaged is put aside and
begun anew; who has it open finds out by its identity. It is never mapped into memory, so that a
file that is cut short is an error and not the end of a process. SQLite does map the index of its
log (-shm): where that has become shorter, it is made as long as it was before it is used. What it
lacks is zeros, which SQLite takes for no index, and makes it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from lipsync_fast import places
from lipsync_fast.errors import StoreDamagedError, StoreError
from lipsync_fast.logs import get_logger

log = get_logger("lipsync.utterances")
FILE = "utterances.sqlite"
APPLICATION, FORMAT = 0x4C534655, 1
PAGE = 4096
_INDEX_HEAD = 136
"""Bytes of the head of SQLite's index of its log: two copies of what it says, and the locks."""
_SCHEMA = """
CREATE TABLE frames (
    id INTEGER PRIMARY KEY, sound BLOB NOT NULL, picture INTEGER NOT NULL, share REAL NOT NULL,
    used INTEGER NOT NULL, pins INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL,
    mark BLOB NOT NULL, value BLOB NOT NULL);
CREATE UNIQUE INDEX frames_known ON frames (sound, picture, share);
CREATE INDEX frames_used ON frames (used) WHERE pins = 0;
CREATE INDEX frames_pinned ON frames (size) WHERE pins > 0;
CREATE TABLE names (
    id INTEGER PRIMARY KEY, avatar TEXT NOT NULL, name TEXT NOT NULL, content BLOB NOT NULL,
    whole INTEGER NOT NULL, made INTEGER NOT NULL, mark BLOB NOT NULL, pcm BLOB NOT NULL,
    UNIQUE (avatar, name));
CREATE TABLE pins (
    name INTEGER NOT NULL, frame INTEGER NOT NULL, PRIMARY KEY (name, frame)) WITHOUT ROWID;
"""


def store_folder(configured: str = "") -> Path:
    """The folder of the file: as configured, else what systemd gives, else the user's state.

    Raises:
        StoreError: there is no such place.
    """
    folder = Path(configured).absolute() if configured else places.state_folder()
    if folder is None:
        raise StoreError("there is no home folder to keep utterances in: set utterances.folder")
    return folder


class Database:
    """A connection to the file. For one thread at a time.

    Args:
        folder: of the file; made where it is not there.
        limit: bytes that may be kept.
        wait_s: for other writers; 0 for who must not wait.

    Raises:
        StoreError: it cannot be opened. A damaged file is put aside first, and begun anew.
    """

    def __init__(self, folder: Path, limit: int, wait_s: float = 0.0) -> None:
        self.path, self.limit, self._wait_s = folder / FILE, limit, wait_s
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._alone():
                try:
                    self._connection = self._opened()
                except StoreDamagedError as error:
                    self._put_aside(str(error))
                    self._connection = self._opened()
                self._identity = _identity(self.path)
                self._shared = self._shared_size()
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None

    _shared = 0
    """Bytes of the log's index that are mapped at most."""

    # ------------------------------------------------------------ the file
    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While a file is made or put aside, nobody else does."""
        fd = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + max(self._wait_s, 1.0)
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > until:
                        raise StoreError(f"{self.path}: is being made by another one") from None
                    time.sleep(0.005)
            yield
        finally:
            os.close(fd)

    def _opened(self) -> sqlite3.Connection:
        # Not waiting: it may be a pipe, which SQLite would take for a file that is cut short.
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        with os.fdopen(fd, "rb", buffering=0):
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise StoreError(f"{self.path}: is not a file; remove it, or set utterances.folder")
        connection = sqlite3.connect(
            self.path, timeout=self._wait_s, isolation_level=None, check_same_thread=False
        )
        try:
            with sqlite_errors(self.path):
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute("PRAGMA journal_size_limit = 8388608")
                (about,) = connection.execute("PRAGMA application_id").fetchone()
                (form,) = connection.execute("PRAGMA user_version").fetchone()
                (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if (about, form, tables) == (0, 0, 0):
                    connection.executescript(
                        f"BEGIN; {_SCHEMA} PRAGMA application_id = {APPLICATION};"
                        f" PRAGMA user_version = {FORMAT}; COMMIT;"
                    )
                elif (about, form) != (APPLICATION, FORMAT):
                    raise StoreDamagedError(f"{self.path}: is not of this version")
                connection.execute("SELECT sound, used, pins FROM frames LIMIT 1").fetchall()
                connection.execute("SELECT name, pcm FROM names LIMIT 1").fetchall()
        except BaseException:
            connection.close()
            raise
        return connection

    def _put_aside(self, reason: str) -> None:
        """Give the file and what belongs to it another name."""
        aside = self.path.with_name(f"{FILE}.damaged-{time.time_ns() // 1_000_000}")
        log.warning("the store is put aside, and begun anew", aside=aside.name, reason=reason)
        for ending in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self.path}{ending}", f"{aside}{ending}")
        for old in sorted(self.path.parent.glob(f"{FILE}.damaged-*"))[:-3]:
            old.unlink(missing_ok=True)  # the newest one, with what belongs to it, is enough

    @contextlib.contextmanager
    def _access(self) -> Iterator[None]:
        """While the file is used: with its index as long as it was, and SQLite's errors as ours."""
        size = self._shared_size()
        if size < self._shared:
            log.warning("the store's index was cut short", file=f"{self.path.name}-shm")
            self._empty_index()
        self._shared = max(self._shared, size)
        with sqlite_errors(self.path):
            yield

    def _empty_index(self) -> None:
        """Make the log's index as long as it was, and its head zeros: a part of it is none."""
        with contextlib.suppress(OSError):
            how = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(f"{self.path}-shm", how)
            try:
                os.pwrite(fd, bytes(_INDEX_HEAD), 0)
                os.ftruncate(fd, self._shared)
            finally:
                os.close(fd)

    def _shared_size(self) -> int:
        try:
            return os.stat(f"{self.path}-shm").st_size
        except OSError:  # removed: whoever has it mapped keeps it
            return self._shared

    @property
    def replaced(self) -> bool:
        """Whether another file has taken this one's name."""
        return _identity(self.path) != self._identity

    def mended(self) -> Self:
        """Another connection in place of this one, whose file is damaged or was replaced.

        Raises:
            StoreError: it cannot be had.
        """
        self.close()
        try:
            with self._alone():
                if not self.replaced:
                    self._put_aside(f"{self.path}: is damaged")
        except OSError as error:
            raise StoreError(f"{self.path}: {error.strerror}") from None
        return type(self)(self.path.parent, self.limit, self._wait_s)

    def close(self) -> None:
        """Close it; twice is harmless."""
        with contextlib.suppress(sqlite3.Error, StoreError), self._access():
            self._connection.close()

    def used_bytes(self) -> int:
        """Bytes of the file, by what is in it.

        Raises:
            StoreError: as ``find``.
        """
        with self._access():
            return self._used_bytes()

    def _used_bytes(self) -> int:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        return int(pages - free) * PAGE

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: whole, or not there."""
        with self._access():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_dev, about.st_ino


_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""Primary codes; the last one: a table is not there."""


@contextlib.contextmanager
def sqlite_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0)
        # A file that was cut short gives reads that are too short.
        if code & 0xFF in _DAMAGED or code == sqlite3.SQLITE_IOERR_SHORT_READ:
            raise StoreDamagedError(f"{path}: is damaged ({error})") from None
        raise StoreError(f"{path}: {error}") from None
