# SPDX-License-Identifier: Apache-2.0
"""Recordings as they lie: files, or objects at URLs, which are fetched while they are used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

from lipsync_fast.batch.made import Source
from lipsync_fast.errors import MediaError, ObjectMissingError, words_of
from lipsync_fast.objects import About, Objects, is_url, located, shown_url
from lipsync_fast.output.base import output_error

_PIECE = 1 << 20


class Recorded:
    """One recording.

    Raises:
        MediaError: it is not there, is no file, or cannot be read.
        ObjectError: its URL cannot be used.
    """

    def __init__(self, audio: str) -> None:
        self._remote: tuple[Objects, str, About] | None = None
        if is_url(audio) and not audio.startswith("file:"):
            objects, key = located(audio)
            try:
                about = objects.about(key)
            except ObjectMissingError as error:
                raise MediaError(str(error)) from None
            self._remote = objects, key, about
            self.name = shown_url(audio)
            self.size, self.version = about.size, about.version
            self._suffix = Path(self.name).suffix[:16]
            return
        from lipsync_fast.batch.outputs import folder_of

        self._path = folder_of(audio) or Path(audio)
        self.name = str(self._path)
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            raise MediaError(f"{self.name}: no such file") from None
        except (OSError, ValueError) as error:
            raise MediaError(f"{self.name}: cannot be read ({words_of(error)})") from error
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for for ever
            raise MediaError(f"{self.name}: is no file, expected a recording")
        self.size, self.version = found.st_size, str(found.st_mtime_ns)

    def looks_like(self, source: Source) -> bool:
        """Whether nothing about it has changed, as far as can be told without reading it."""
        return (self.size, self.version) == (source.size, source.version)

    def here(self, folder: Path, alive: Callable[[], None]) -> Path:
        """A path at which it can be read; one that lies elsewhere is fetched into ``folder``.

        Args:
            alive: called now and then.

        Raises:
            ObjectError: it cannot be fetched.
            OutputError: the folder cannot be written.
        """
        if self._remote is None:
            return self._path
        objects, key, about = self._remote
        path = folder / f"recording{self._suffix}"
        try:
            with open(path, "w+b") as file:
                objects.fetch(key, about, file, advance=lambda count: alive())
        except OSError as error:
            raise output_error(path, error) from error
        return path

    def source(self, path: Path, alive: Callable[[], None]) -> Source:
        """What it is, once it was read; ``path`` is where ``here`` has put it.

        Raises:
            MediaError: it cannot be read.
        """
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    alive()
        except OSError as error:
            raise MediaError(f"{self.name}: cannot be read ({words_of(error)})") from error
        return Source(size=self.size, version=self.version, sha256=digest.hexdigest())

    def renamed(self, text: str, path: Path) -> str:
        """A message about the file at ``path``, by the name that people know it by."""
        with contextlib.suppress(AttributeError):
            return text.replace(str(path), self.name)
        return text
