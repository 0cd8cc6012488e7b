# SPDX-License-Identifier: Apache-2.0
"""Where videos go: a folder, which several machines may share, or a URL.

A video is made in a scratch folder, and appears under its name in one step when it is whole. The
scratch folder of one run, with all that is unfinished, is removed at its end; what a run that was
killed has left, by the next one.

    OUT/.batch/lock        held by the run, so that there is one at a time
    OUT/.batch/RUN-…/      scratch of a run whose outputs go to a folder
    OUT/0001.mp4           videos
    OUT/batch.jsonl        what became of each recording
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from lipsync_fast.batch.made import MOST_BYTES, Made, read_box, read_made
from lipsync_fast.errors import ObjectError, ObjectMissingError, OutputError
from lipsync_fast.objects import Objects, is_url
from lipsync_fast.output.base import output_error, publish_file

HIDDEN = ".batch"
SUMMARY = "batch.jsonl"


class Outputs(Protocol):
    """A place for videos."""

    def made(self, name: str) -> Made | None:
        """What the video of that name says of itself; None where it says nothing of a batch.

        Raises:
            FileNotFoundError: there is none.
            OutputError: it cannot be read.
        """
        ...

    def scratch(self) -> contextlib.AbstractContextManager[Path]:
        """A folder of one's own for an unfinished video, removed at the end.

        Raises:
            OutputError: it cannot be made.
        """
        ...

    def publish(self, video: Path, name: str, replace: bool) -> None:
        """Give a whole video its name, in one step.

        Args:
            replace: what may be there; else that is kept.

        Raises:
            OutputError, ObjectError: it cannot be written, or the name is taken.
        """
        ...

    def write(self, name: str, data: bytes) -> None:
        """Write a small file in one step, instead of what is there.

        Raises:
            OutputError, ObjectError: it cannot be written.
        """
        ...


def folder_of(out: str) -> Path | None:
    """The folder that ``--out`` names, absolute; None where it is a URL of something else."""
    if not is_url(out):
        return Path(out).absolute()
    parts = urlsplit(out)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def open_outputs(out: str, run: str) -> Outputs:
    """The place that a URL or an absolute path names, for one run.

    Raises:
        ObjectError: it is a URL that cannot be used.
    """
    folder = folder_of(out)
    return UrlOutputs(out) if folder is None else FolderOutputs(folder, run)


class FolderOutputs:
    """Videos in a folder."""

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._scratch = folder / HIDDEN / run

    def made(self, name: str) -> Made | None:
        """See ``Outputs``."""
        path = self._folder / name
        try:
            if not path.is_file() and os.path.lexists(path):
                raise OutputError(f"cannot write {path}: something else of that name exists")
            return read_made(path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(path) from None
        except OSError as error:
            raise output_error(path, error) from error

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """See ``Outputs``."""
        folder = self._scratch / secrets.token_hex(8)
        try:
            folder.mkdir()
        except FileNotFoundError as error:
            raise OutputError(
                f"{self._folder} is not the folder of this run: on several machines, it must be one"
                " that they share, or a URL"
            ) from error
        except OSError as error:
            raise output_error(folder, error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, video: Path, name: str, replace: bool) -> None:
        """See ``Outputs``."""
        target = self._folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise output_error(target.parent, error) from error
        publish_file(video, target, replace)

    def write(self, name: str, data: bytes) -> None:
        """See ``Outputs``."""
        target = self._folder / name
        partial = self._scratch / f"{secrets.token_hex(8)}.part"
        try:
            partial.write_bytes(data)
            os.replace(partial, target)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise output_error(target, error) from error


class UrlOutputs:
    """Videos at a URL: each is put there whole."""

    def __init__(self, url: str) -> None:
        if urlsplit(url).scheme.lower() in ("http", "https"):
            raise ObjectError(
                f"{url}: nothing can be written by HTTP; expected s3://, gs:// or az://"
            )
        self._objects = Objects(url)

    def made(self, name: str) -> Made | None:
        """See ``Outputs``."""
        try:
            return read_box(self._objects.tail(name, MOST_BYTES))
        except ObjectMissingError:
            raise FileNotFoundError(self._objects.where(name)) from None

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """See ``Outputs``."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="lipsync-batch-"))
        except OSError as error:
            raise output_error(Path(tempfile.gettempdir()), error) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, video: Path, name: str, replace: bool) -> None:
        """See ``Outputs``. (Whether something was there, ``made`` has told a moment ago.)"""
        self._objects.put(name, video)

    def write(self, name: str, data: bytes) -> None:
        """See ``Outputs``."""
        self._objects.put(name, data)


@contextlib.contextmanager
def claimed(out: str) -> Iterator[str]:
    """Have the outputs for one run, and remove what is unfinished at its end.

    Gives the run's name, for ``open_outputs``.

    Raises:
        OutputError: the folder cannot be made or written, or another run has it.
    """
    run = f"run-{secrets.token_hex(8)}"
    folder = folder_of(out)
    if folder is None:
        yield run
        return
    try:
        if not folder.parent.is_dir():
            raise OutputError(
                f"cannot write {folder}: the folder {folder.parent} does not exist; create it first"
            )
        if os.path.lexists(folder) and not folder.is_dir():
            raise OutputError(f"cannot write to {folder}: it is no folder")
        is_new = not folder.exists()
        hidden = folder / HIDDEN
        hidden.mkdir(parents=True, exist_ok=True)
        lock = _locked(hidden / "lock", folder)
    except OSError as error:
        raise output_error(folder, error) from error
    try:
        for left in hidden.iterdir():
            if left.name != "lock":
                shutil.rmtree(left, ignore_errors=True)
        try:
            (hidden / run).mkdir()
        except OSError as error:
            raise output_error(folder, error) from error
        yield run
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        os.close(lock)
        if is_new:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


def _locked(path: Path, folder: Path) -> int:
    """An open file that nobody else has locked.

    Raises:
        OutputError: somebody has.
        OSError: it cannot be opened.
    """
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise OutputError(
                f"another batch writes to {folder}; wait until it has ended"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                os.close(lock)
                raise
        try:  # it may have been removed meanwhile, by a run that has just ended
            if os.path.samestat(os.stat(path), os.fstat(lock)):
                return lock
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
        os.close(lock)
