# SPDX-License-Identifier: Apache-2.0
"""By what a kept frame is known: all that its bytes depend on, and nothing else.

    sound    hash of: the avatar's content, who makes frames, how they are encoded (``scope_of``),
             the mel windows that the frame sees and every sample of them
    picture  the avatar's frame under it
    share    how much of the generated mouth is shown

Nothing is looked for that is only near: a sample that differs in one bit is another sound.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.ipc.messages import Content, Look, scaled_size
from lipsync_fast.version import __version__

FORM = b"lipsync-fast utterances 1"
"""Raised when what is kept is to be read otherwise: then nothing that was kept is found."""
HOP = 200


class _SaysWhatItIs(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def numerics(self) -> str: ...


def content_of(package: AvatarPackage) -> bytes:
    """16 bytes that no avatar of another content has.

    Of the manifest, which has the SHA-256 of every other member that is read.
    """
    return blake2b(package.member_bytes("manifest.json"), digest_size=16).digest()


def maker_of(backend: _SaysWhatItIs) -> str:
    """What a backend's pictures depend on besides their jobs, in a word."""
    from PIL import __version__ as pillow

    kind = backend.name.partition(":")[0]
    return f"{kind} {backend.numerics} {pillow} {__version__}"


def scope_of(content: bytes, maker: str, manifest: Manifest, look: Look) -> bytes:
    """16 bytes for all that the frames of a session have in common.

    Args:
        content: see ``content_of``.
        maker: see ``maker_of``.
        look: None in it is the avatar's own, and counts as that.
    """
    size = manifest.frame_width, manifest.frame_height
    if look.content == Content.FRAME:
        size = scaled_size(size, look.max_width)
    quality = look.quality or manifest.jpeg.quality
    about = f"{maker}|{int(look.content)}|{quality}|{size[0]}x{size[1]}"
    return blake2b(b"|".join((FORM, content, about.encode())), digest_size=16).digest()


def sound_of(scope: bytes, starts: Sequence[int], first: int, pcm: NDArray[np.float32]) -> bytes:
    """16 bytes for what a frame sees of its sound, within a scope.

    Args:
        starts: of its mel windows (``audio.windows.block_starts``); -1 for zeros.
        first: number of the first sample.
        pcm: float32, from there on; where they end, so does the sound.
    """
    low = min((start for start in starts if start >= 0), default=0)
    # Where windows lie in the sound does not matter, but that they begin at its very start does:
    # then ``first`` is no constant distance before the first one.
    seen = [s - low if s >= 0 else -1 for s in starts]
    pattern = struct.pack(f"<{len(seen)}iq", *seen, first - HOP * low)
    found = blake2b(scope, digest_size=16)
    found.update(pattern)
    found.update(memoryview(pcm.data).cast("B") if len(pcm) else b"")
    return found.digest()
