# SPDX-License-Identifier: Apache-2.0
"""What a video of a batch says of itself: from which recording it was made, and how.

It stands in a box at the very end of the MP4, which players pass over. So a video that was copied,
or whose list is lost, is still known for what it is; there is no journal that could disagree.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from uuid import UUID

import msgspec

UUID_OF_BOX = UUID("5b0f7a86-3c1e-4d8a-9a55-6c7e0d2f4b19").bytes
MOST_BYTES = 4096
"""Of the box; so much is read from a video's end."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A recording as it was: size in bytes, a word that changes with it, and its SHA-256.

    The word is the time of change (ns) of a file, or what a store calls its version.
    """

    size: int
    version: str
    sha256: str


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a video was made from.

    Attributes:
        avatar: digest of the avatar's content (``utterances.keys.content_of``), as hex.
        frames: in the video.
        software: version of this program.
    """

    source: Source
    avatar: str
    start_frame: int
    frames: int
    software: str

    def is_made_of(self, source: Source, avatar: str, start_frame: int) -> bool:
        """Whether it would come out the same."""
        same = (self.source.size, self.source.sha256) == (source.size, source.sha256)
        return same and (self.avatar, self.start_frame) == (avatar, start_frame)


def box(made: Made) -> bytes:
    """The box that says it."""
    body = UUID_OF_BOX + msgspec.json.encode(made)
    return struct.pack(">I4s", 8 + len(body), b"uuid") + body


def read_box(tail: bytes) -> Made | None:
    """What the last bytes of a video say; None where it is not of a batch, or not whole."""
    at = tail.rfind(b"uuid" + UUID_OF_BOX) - 4
    if at < 0 or int.from_bytes(tail[at : at + 4], "big") != len(tail) - at:
        return None
    try:
        return msgspec.json.decode(tail[at + 24 :], type=Made)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_made(video: Path) -> Made | None:
    """What a video says.

    Raises:
        OSError: it cannot be read, or is not there.
    """
    with open(os.open(video, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MOST_BYTES))
        return read_box(file.read(MOST_BYTES))


def add_box(video: Path, made: Made) -> None:
    """Have a video say it.

    Raises:
        OSError: it cannot be written.
    """
    with open(video, "ab") as file:
        file.write(box(made))
