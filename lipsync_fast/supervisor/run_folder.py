# SPDX-License-Identifier: Apache-2.0
"""The private folder of a running server: its control socket, and the lock that says it runs.

    $XDG_RUNTIME_DIR/lipsync-fast-PORT, or /tmp/lipsync-fast-UID/PORT where that is not this user's;
    PORT is the first stream port
        lock       held (flock) while the server lives, whatever ends it; holds its process number
        control    the Unix socket of ipc/control_socket.py
        mps        pipes and logs of an MPS daemon that is the server's own (mps.py)

A folder whose lock nobody holds is a crashed run's, and is removed by the next start. One that is
removed while its server runs is made again: children to come connect there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lipsync_fast.errors import ServerError
from lipsync_fast.ipc.control_socket import private_folder
from lipsync_fast.places import runtime_folder
from lipsync_fast.supervisor import mps

LOCK, CONTROL = "lock", "control"
_TRIES, _PAUSE_S = 10, 0.02
"""Tries to lock, and the pause between: another start that cleans up holds it for an instant."""


def default_run_folder(port: int) -> Path:
    """Where the server of that first stream port has its folder."""
    base = runtime_folder()
    return base / f"lipsync-fast-{port}" if base is not None else _own_tmp() / str(port)


def _own_tmp() -> Path:
    return Path("/tmp") / f"lipsync-fast-{os.geteuid()}"


def run_folders() -> Iterator[Path]:
    """All folders that servers of this user have where ``default_run_folder`` puts them."""
    base = runtime_folder()
    parent, prefix = (base, "lipsync-fast-") if base is not None else (_own_tmp(), "")
    with contextlib.suppress(OSError):
        for path in sorted(parent.iterdir()):
            number = path.name.removeprefix(prefix)
            if path.name.startswith(prefix) and number.isdecimal() and _is_ours(path):
                yield path


def _is_ours(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid() and path.is_dir() and not path.is_symlink()
    return False


def is_running(folder: Path) -> bool:
    """Whether a server holds the folder's lock."""
    try:
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(fd)
    finally:
        os.close(fd)


def was_running(folder: Path) -> bool:
    """Whether the folder is a crashed run's."""
    return os.path.lexists(folder / LOCK) and not is_running(folder)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@dataclass
class RunFolder:
    """A folder that is this server's; made by ``take``."""

    path: Path
    _fd: int

    @classmethod
    def take(cls, path: Path) -> RunFolder:
        """Make the folder, or take over a crashed run's.

        Raises:
            ServerError: another server runs there.
            ControlError: the folder cannot be made, or is not this user's alone.
        """
        if path.parent == _own_tmp():
            private_folder(path.parent)
        for _ in range(_TRIES):
            private_folder(path)
            taken = cls._try(path)
            if taken is not None:
                return taken
            time.sleep(_PAUSE_S)
        raise ServerError(
            f"{path}: another server{_holder(path)} runs there; stop it, or choose other ports"
        )

    @classmethod
    def _try(cls, path: Path) -> RunFolder | None:
        try:
            how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(path / LOCK, how, 0o600)
        except FileNotFoundError:  # removed by who cleans up, since it was made
            return None
        except OSError as error:
            raise ServerError(f"{path / LOCK}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ServerError(f"{path / LOCK}: is not a file; remove it")
        if not _lock(fd) or not _is_still(fd, path / LOCK):
            os.close(fd)
            return None
        with contextlib.suppress(OSError):  # a full disk: the number is for messages alone
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()}\n".encode())
        try:
            (path / CONTROL).unlink(missing_ok=True)
        except OSError as error:
            os.close(fd)
            raise ServerError(f"{path / CONTROL}: {error.strerror}; remove it") from None
        return cls(path, fd)

    def renew(self) -> bool:
        """Make the folder again if somebody has removed it, or its lock; True where that was so.

        Who cleans up temporary folders, or ends a user's last login, does not ask.

        Raises:
            ServerError: another server runs there by now.
            ControlError: the folder cannot be made.
        """
        if _is_still(self._fd, self.path / LOCK):
            return False
        again = RunFolder.take(self.path)
        os.close(self._fd)
        self._fd = again._fd
        return True

    def remove(self) -> None:
        """Remove what the server has left there, and the folder where nothing else is in it."""
        _clear(self.path)
        os.close(self._fd)


def _is_still(fd: int, path: Path) -> bool:
    """Whether the file at ``path`` is the one that was opened: not removed by who cleans up."""
    try:
        there = path.stat()
    except OSError:
        return False
    here = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" (process {int((path / LOCK).read_text()[:20])})"
    return ""


def _clear(folder: Path) -> None:
    for name in (CONTROL, LOCK):
        with contextlib.suppress(OSError):
            (folder / name).unlink()
    mps.remove(folder / mps.FOLDER)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_crashed() -> list[Path]:
    """Remove the folders of crashed runs of this user; says which."""
    removed = []
    for folder in run_folders():
        try:
            fd = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        if _lock(fd) and _is_still(fd, folder / LOCK):
            _clear(folder)
            removed.append(folder)
        os.close(fd)
    return removed
