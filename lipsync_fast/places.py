# SPDX-License-Identifier: Apache-2.0
"""Where a user's files are: by the XDG variables, else below the home folder; there may be neither.

A process may have no home at all: a container whose user has no entry in the list of users, or a
service without HOME. And a variable may be another user's: ``su`` and ``sudo -E`` keep them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

NAME = "lipsync-fast"


def home() -> Path | None:
    """The user's home folder; None where none is known."""
    try:
        found = Path.home()
    except (RuntimeError, KeyError, OSError):
        return None
    return found if found.is_absolute() else None


def _base(variable: str, below_home: str) -> Path | None:
    """As the XDG specification has it: what is not absolute does not count."""
    given = os.environ.get(variable, "")
    if os.path.isabs(given):
        return Path(given)
    own = home()
    return None if own is None else own / below_home


def data_folder() -> Path | None:
    """$XDG_DATA_HOME/lipsync-fast: what the user has made. None: there is no place for it."""
    base = _base("XDG_DATA_HOME", ".local/share")
    return None if base is None else base / NAME


def state_folder() -> Path | None:
    """What is kept from one run to the next: systemd's folder, else $XDG_STATE_HOME/lipsync-fast.

    None: there is no place for it.
    """
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    base = _base("XDG_STATE_HOME", ".local/state")
    return None if base is None else base / NAME


def package_cache_folder() -> Path | None:
    """What could be fetched again: systemd's folder, else $XDG_CACHE_HOME/lipsync-fast.

    None: there is no place for it.
    """
    given = os.environ.get("CACHE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    base = cache_folder()
    return None if base is None else base / NAME


def cache_folder() -> Path | None:
    """$XDG_CACHE_HOME, of all programs; None where there is none."""
    return _base("XDG_CACHE_HOME", ".cache")


def runtime_folder() -> Path | None:
    """$XDG_RUNTIME_DIR where it is this user's, and can be used; else None."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if not os.path.isabs(given):
        return None
    try:
        about = os.stat(given)
    except OSError:
        return None
    own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid()
    return Path(given) if own and os.access(given, os.W_OK | os.X_OK) else None
