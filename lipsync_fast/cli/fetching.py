# SPDX-License-Identifier: Apache-2.0
"""Finding an avatar for a command, with what is shown while its package comes from a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lipsync_fast.avatars.library import AvatarLibrary
from lipsync_fast.console import Progress, warn


def found_avatar(avatar: str, folders: Sequence[str], quiet: bool) -> Path:
    """Where an avatar's package lies.

    Args:
        avatar: a name, a path, or a URL.
        folders: and stores, looked in first.

    Raises:
        AvatarError: there is none, or it cannot be had.
    """
    with _Fetched(quiet) as fetched:
        library = AvatarLibrary(folders, advance=fetched.advance)
        path = library.find(avatar)
    for warning in () if quiet else library.warnings:
        warn(warning)
    return path


class _Fetched:
    """Megabytes that have come, shown where there are any."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._bytes, self._shown = quiet, 0, 0
        self._progress: Progress | None = None

    def __enter__(self) -> _Fetched:
        return self

    def advance(self, count: int) -> None:
        """So many bytes more have come."""
        self._bytes += count
        if self._progress is None:
            self._progress = Progress(None, quiet=self._quiet, verb="fetching", unit="MB")
            self._progress.__enter__()
        while self._shown < self._bytes // 1_000_000:
            self._shown += 1
            self._progress.advance()

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.__exit__()
