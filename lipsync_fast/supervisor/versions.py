# SPDX-License-Identifier: Apache-2.0
"""Versions of avatars: the same name, other files.

What sessions begin with stays theirs when an avatar is replaced. So jobs and engines know an avatar
by its version's key. The first version's key is the name; a later one's has what no client can
name. A key is never used for another version.
"""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from lipsync_fast.avatars.identity import MANIFEST, identity_from, identity_of
from lipsync_fast.errors import AvatarFormatError, AvatarNotFoundError
from lipsync_fast.machine import leaves_descriptors, too_many_avatars


class OpenedPackage:
    """A package that is kept open: its file can be loaded even when another one took its name.

    A folder's files cannot be kept so: it serves for as long as nobody removes them.
    """

    def __init__(self, path: Path) -> None:
        """Open what lies there.

        Raises:
            AvatarNotFoundError: nothing does.
            AvatarFormatError: it is no package: neither a file nor a folder with a manifest.
        """
        self.path = str(path.absolute())
        self.fd = -1
        try:
            self.is_folder = os.path.isdir(path)
            # Not waiting: a pipe that nobody fills is no package.
            how = os.O_PATH | os.O_DIRECTORY if self.is_folder else os.O_RDONLY | os.O_NONBLOCK
            self.fd = os.open(path, how | os.O_CLOEXEC)
            about = os.stat(MANIFEST, dir_fd=self.fd) if self.is_folder else os.fstat(self.fd)
        except (FileNotFoundError, ValueError):
            self.close()
            raise AvatarNotFoundError(f"{self.path}: no such avatar package") from None
        except OSError as error:
            self.close()
            raise AvatarFormatError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(about.st_mode):
            self.close()
            raise AvatarFormatError(f"{self.path}: is not an avatar package")
        if not leaves_descriptors(self.fd):
            self.close()
            raise AvatarFormatError(f"{self.path}: {too_many_avatars()}")
        self.identity = identity_from(about)

    @property
    def open_path(self) -> str:
        """The path by which this process and its children open just this package."""
        if self.is_folder and identity_of(Path(self.path)) == self.identity:
            return self.path
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @property
    def is_intact(self) -> bool:
        """Whether it still is what was opened."""
        if not self.is_folder:
            return True
        try:
            return identity_from(os.stat(MANIFEST, dir_fd=self.fd)) == self.identity
        except OSError:
            return False

    def close(self) -> None:
        """Keep it open no longer; twice is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(eq=False)
class Version:
    """One version of an avatar that engines hold, or are to.

    Attributes:
        name: of the avatar; key: what jobs and engines know this version by.
        number: 1 is the first one of that name that sessions could get.
        package: its files.
        since: when it came into use, CLOCK_MONOTONIC, s.
        retired_in: number of the catalogue that was the first without it; 0 while sessions can
            begin with it.
    """

    name: str
    key: str
    number: int
    package: OpenedPackage
    since: float = field(default_factory=time.monotonic)
    retired_in: int = 0

    @property
    def is_loadable(self) -> bool:
        """Not where the files of a version that is leaving are others now: its sessions would see
        a mixture."""
        return not self.retired_in or self.package.is_intact
