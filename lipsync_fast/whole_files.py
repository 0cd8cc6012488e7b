# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def write_whole(file: Path, data: bytes | memoryview, mode: int | None = None) -> None:
    """Write a file in one step; it is on the disk then.

    Until then data lie beside it, under a name that is always the same: what a killed program has
    left is written over by the next one. So one program at a time may write a file.

    Args:
        mode: of the file; what the umask leaves of 0666 where None.

    Raises:
        OSError: it cannot be written; what was there before is there.
    """
    partial = file.with_name(f".{file.name}.new")
    try:
        with open(partial, "wb") as out:
            out.write(data)
            out.flush()
            if mode is not None:
                os.fchmod(out.fileno(), mode)
            os.fsync(out.fileno())
        os.replace(partial, file)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_all([file.parent])


def sync_all(paths: Iterable[Path]) -> None:
    """Wait until files, and what folders say is in them, are on the disk: a late "no space" comes
    to light here.

    Raises:
        OSError: they cannot be, or one of them is not there.
    """
    for path in paths:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
