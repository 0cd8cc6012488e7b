# SPDX-License-Identifier: Apache-2.0
"""What tells a package from all others that were at its path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MANIFEST = "manifest.json"  # as in storage, which needs numpy: who only looks needs none
Identity = tuple[int, int, int, int]
"""Device, inode, size and time of change (ns) of a package's file, or of a folder's manifest."""


def identity_of(path: Path) -> Identity | None:
    """The identity of what lies at a path now; None where no package can be there."""
    try:
        about = os.stat(path / MANIFEST if os.path.isdir(path) else path)
    except (OSError, ValueError):
        return None
    return identity_from(about) if stat.S_ISREG(about.st_mode) else None


def identity_from(about: os.stat_result) -> Identity:
    """The identity of a file from what the system says of it."""
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns
