# SPDX-License-Identifier: Apache-2.0
"""What a writer is, and how a file or folder gets its final name only when it is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import OutputError
from lipsync_fast.provenance import CREATOR_MARK
from lipsync_fast.whole_files import sync_all

PNG_NAME = re.compile(r"\d{6,}\.png")
_HEAD_BYTES = 4096


class FrameLike(Protocol):
    """What a writer needs of a frame."""

    @property
    def index(self) -> int:
        """Position in the video, from 0."""
        ...

    @property
    def pts(self) -> Fraction:
        """Seconds since the start."""
        ...

    @property
    def image(self) -> NDArray[np.uint8]:
        """H x W x 3 uint8 RGB."""
        ...

    @property
    def jpeg(self) -> bytes:
        """The frame as a JPEG that carries its provenance."""
        ...


class FrameWriter(Protocol):
    """Takes frames in order; nothing lies under the final name until ``commit``.

    As a context manager it commits nothing by itself: leaving it without ``commit`` (an error,
    Ctrl-C) removes what was written.
    """

    @property
    def target(self) -> str:
        """Where the result lies after ``commit``, for people."""
        ...

    def write(self, frame: FrameLike) -> None:
        """Add the next frame.

        Raises:
            OutputError: it cannot be written (no space, say).
        """
        ...

    def commit(self) -> None:
        """Finish, and give the result its final name.

        Raises:
            OutputError: it cannot be finished, or something else took the name meanwhile.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def output_error(target: Path, error: Exception) -> OutputError:
    """One line for people: what cannot be written and why (an OSError, or FFmpeg's own)."""
    number = getattr(error, "errno", None) or 0
    reason = {
        errno.ENOSPC: "no space left on the device",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would be larger than allowed",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
    }.get(number, getattr(error, "strerror", None) or str(error))
    return OutputError(f"cannot write {target}: {reason}")


def check_parent(target: Path) -> None:
    """Refuse a target whose folder is missing, is no folder, or does not take new files.

    Raises:
        OutputError: with what to do.
    """
    parent = target.parent
    try:
        mode = os.stat(parent).st_mode
    except FileNotFoundError:
        raise OutputError(
            f"cannot write {target}: the folder {parent} does not exist; create it first"
        ) from None
    except OSError as error:
        raise output_error(target, error) from None
    if not stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {target}: {parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {target}: no permission to write into {parent}")


def check_file_target(target: Path, force: bool) -> None:
    """Refuse a file target before any work is done.

    Raises:
        OutputError: the folder is unusable, or the name is taken (by a folder: even with
            ``force``).
    """
    check_parent(target)
    if target.is_dir() and not target.is_symlink():
        raise OutputError(f"cannot write {target}: a folder of that name exists")
    if os.path.lexists(target) and not force:
        raise OutputError(f"{target} exists; use --force to replace it")


def check_folder_target(target: Path, force: bool) -> None:
    """Refuse a folder target before any work is done.

    An empty folder is taken. A folder with something in it is replaced only with ``force``, and
    only if every entry is a PNG that this software wrote (``owned_pngs``): no other folder is
    ever removed.

    Raises:
        OutputError: the target cannot be taken.
    """
    check_parent(target)
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise OutputError(
            f"cannot write a folder of pictures to {target}: a file of that name exists "
            "(give a name that ends in .mp4 for a video)"
        )
    if not any(target.iterdir()):
        return
    if not force:
        raise OutputError(f"{target} exists and is not empty; use --force to replace it")
    if owned_pngs(target) is None:
        raise OutputError(
            f"{target} holds files that lipsync-fast did not write; it is not replaced, even with "
            "--force: choose another folder, or empty it yourself"
        )


def owned_pngs(folder: Path) -> list[Path] | None:
    """The entries of ``folder`` if all are PNG frames of ours, else None.

    A frame of ours is a regular file named as one (``000000.png``) that is a PNG and carries our
    XMP packet at its head.
    """
    owned = []
    for entry in sorted(folder.iterdir()):
        if not PNG_NAME.fullmatch(entry.name) or not stat.S_ISREG(entry.lstat().st_mode):
            return None
        with entry.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        if not head.startswith(b"\x89PNG\r\n\x1a\n") or CREATOR_MARK not in head:
            return None
        owned.append(entry)
    return owned


def partial_name(target: Path) -> Path:
    """A new name beside ``target`` (same file system, hidden) to write to."""
    return target.with_name(f".{target.name[:200]}.partial-{os.getpid()}-{secrets.token_hex(4)}")


def publish_file(partial: Path, target: Path, force: bool) -> None:
    """Give a finished file its final name, in one step.

    Without ``force`` a file that appeared meanwhile is kept: the new name is made by a hard link,
    which fails if the name is taken. File systems without hard links fall back on a check and a
    rename, which leaves a moment between the two.

    Raises:
        OutputError: the name is taken, or cannot be given.
    """
    try:
        sync_all([partial])
        if not force:
            try:
                os.link(partial, target)
            except FileExistsError:
                raise
            except OSError:
                if os.path.lexists(target):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                os.rename(partial, target)
            else:
                os.unlink(partial)
        else:
            os.replace(partial, target)
    except FileExistsError:
        raise OutputError(
            f"{target} appeared while rendering and is kept; use --force to replace it"
        ) from None
    except OSError as error:
        raise output_error(target, error) from None


def publish_bytes(data: bytes, target: Path, force: bool) -> None:
    """Write a file whose name appears when it is whole.

    Raises:
        OutputError: the name is taken, or it cannot be written.
    """
    partial = partial_name(target)
    try:
        partial.write_bytes(data)
        publish_file(partial, target, force)
    except OSError as error:
        raise output_error(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def publish_folder(partial: Path, target: Path, force: bool) -> None:
    """Give a finished folder its final name; an old one of ours makes room first.

    Raises:
        OutputError: the name is taken by something that is not ours, or cannot be given.
    """
    check_folder_target(target, force)
    old: Path | None = None
    try:
        if force and target.is_dir() and any(target.iterdir()):
            old = partial_name(target)
            os.rename(target, old)
        try:
            os.rename(partial, target)  # takes an empty folder's place, refuses a filled one's
        except BaseException:
            if old is not None:
                os.rename(old, target)
            raise
    except OSError as error:
        raise output_error(target, error) from None
    if old is not None:
        _remove_owned(old)


def remove_frames(folder: Path) -> None:
    """Remove an unfinished folder of ours: its frames, then itself; quiet if it is gone."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if PNG_NAME.fullmatch(entry.name):
            entry.unlink(missing_ok=True)
    folder.rmdir()


def _remove_owned(folder: Path) -> None:
    try:
        for entry in owned_pngs(folder) or []:
            entry.unlink(missing_ok=True)
        folder.rmdir()
    except OSError as error:
        raise OutputError(
            f"the new pictures are in place, but the old ones remain in {folder}: {error.strerror}"
        ) from None
