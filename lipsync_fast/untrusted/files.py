# SPDX-License-Identifier: Apache-2.0
"""Reading files of a folder that somebody else has made, without waiting and without an end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lipsync_fast.errors import AvatarImportError, words_of


def read_file(path: Path, what: str, most: int, root: Path | None = None) -> bytes:
    """The bytes of a file.

    Args:
        path: of the file.
        what: it is expected to be, for errors.
        most: bytes that it may have.
        root: a resolved folder that the file must lie in, wherever links lead.

    Raises:
        FileNotFoundError: there is nothing.
        AvatarImportError: it is no file, too large, cannot be read, or lies elsewhere.
    """
    try:
        # Not waiting: a pipe that nobody fills would be waited for for ever.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise AvatarImportError(f"{path}: is not a file, expected {what}")
            where = os.readlink(f"/proc/self/fd/{file.fileno()}")
            if root is not None and os.path.commonpath([root, where]) != str(root):
                raise AvatarImportError(
                    f"{path}: is a link that leads out of {root}; copy its file in (cp -rL)"
                )
            if about.st_size > most:
                raise AvatarImportError(
                    f"{path}: has {about.st_size} bytes, expected {what} of at most {most}"
                )
            return file.read(most)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = words_of(error)
        raise AvatarImportError(f"{path}: cannot be read as {what} ({reason})") from None
