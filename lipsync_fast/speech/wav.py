# SPDX-License-Identifier: Apache-2.0
"""Samples out of a stream that may be a WAV file, whose lengths say nothing while it is made."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from lipsync_fast.errors import SpeechError

MOST_HEADER = 1 << 16


def samples_of(pieces: Iterator[bytes], rate: int) -> Iterator[bytes]:
    """The samples of s16le mono PCM, with or without a WAV file's header.

    Args:
        pieces: the stream, cut anywhere.
        rate: what it is to be.

    Raises:
        SpeechError: a WAV file of another form.
    """
    head = b""
    for piece in pieces:
        head += piece
        if len(head) < 4:
            continue
        if head[:4] != b"RIFF":
            break
        start = _data_at(head, rate)
        if start is not None:
            head = head[start:]
            break
        if len(head) > MOST_HEADER:
            raise SpeechError("the speech that came is a WAV file without samples")
    else:
        if head[:4] == b"RIFF":
            raise SpeechError("the speech that came is a WAV file that ends in its header")
    if head:
        yield head
    yield from pieces


def _data_at(head: bytes, rate: int) -> int | None:
    """Where samples begin; None where that has not come yet."""
    at = 12
    while len(head) >= at + 8:
        name, size = struct.unpack_from("<4sL", head, at)
        if name == b"data":
            return at + 8
        if len(head) < at + 8 + size:
            return None
        if name == b"fmt " and size >= 16:
            kind, channels, its_rate, _, _, bits = struct.unpack_from("<2H2L2H", head, at + 8)
            if (channels, its_rate, bits) != (1, rate, 16) or kind not in (1, 0xFFFE):
                raise SpeechError(
                    f"the speech that came has {channels} channels of {bits} bits at {its_rate} Hz;"
                    f" expected one of 16 at {rate} Hz"
                )
        at += 8 + size + size % 2
    return None
