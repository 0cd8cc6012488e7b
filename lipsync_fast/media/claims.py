# SPDX-License-Identifier: Apache-2.0
"""What a media file claims of its length, held against the bytes that are there.

Lengths in headers are estimates (MP3 and AAC without a table), placeholders (streams, and files
whose writer was stopped: 0, 0x7FFFFFFF, 0xFFFFFFFF, 2000000000), or the whole file's where one
stream was asked for. None of these says that anything is missing. What does is a part that has a
size of its own and that the file is too short for: that is looked for here, in the formats that
have such parts. The other way round, sound may go on behind the end that a header claims.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_PLACEHOLDERS = (0x7FFF_FFFF, 0xFFFF_FFFF, 2_000_000_000)
_NEAR = 1 << 16
"""Headers' own bytes, and blocks that are whole, are taken off placeholders."""
_FEW = 64
"""Sloppy writers count the header; so few bytes are 2 ms."""
_MOST_PARTS = 100_000
_LEAST = 24
_NAME = re.compile(rb"[\x20-\x7e]{4}")
_TAGS = (b"TAG", b"ID3", b"APETAGEX")
_OGG_PAGE = 65_307
_VBR_SLACK = 4_096


@dataclass(slots=True)
class _File:
    file: BinaryIO
    size: int

    def at(self, position: int, count: int) -> bytes:
        """Up to ``count`` bytes from there."""
        if position >= self.size:
            return b""
        self.file.seek(position)
        return self.file.read(count)


def missing_bytes(path: Path) -> int:
    """How many bytes of the file's own parts are not there; 0 where nothing says so."""
    try:
        with path.open("rb") as opened:
            file = _File(opened, os.fstat(opened.fileno()).st_size)
            head = file.at(0, 16)
            for matches, missing in _FORMATS:
                if matches(head):
                    count = missing(file)
                    return count if count > _FEW else 0
    except OSError:
        pass
    return 0


@dataclass(frozen=True, slots=True)
class Understated:
    """A header that claims less sound than follows it.

    Attributes:
        at: where the claim stands.
        instead: what should stand there.
    """

    at: int
    instead: bytes


def understated(path: Path) -> Understated | None:
    """Whether sound follows the end that a header claims for it, in WAV, AIFF, CAF and W64.

    What follows the sound is other parts, each with a name and a size; bytes that are none are
    sound that was written after the header.
    """
    try:
        with path.open("rb") as opened:
            file = _File(opened, os.fstat(opened.fileno()).st_size)
            head = file.at(0, 16)
            for matches, find in _UNDERSTATED:
                if matches(head):
                    return find(file)
    except OSError:
        pass
    return None


def _wav_understated(file: _File) -> Understated | None:
    data = _wav_data(file)
    if data is None or is_placeholder(data[1]) or not _is_sound(file, sum(data), "little", 4):
        return None
    return Understated(data[0] - 4, b"\xff" * 4)


def _aiff_understated(file: _File) -> Understated | None:
    for name, at, size in _parts(file, 12, "big"):
        if name == b"SSND" and not is_placeholder(size) and _is_sound(file, at + size, "big", 4):
            return Understated(at - 4, min(file.size - at, 0x7FFF_FFFF).to_bytes(4, "big"))
    return None


def _caf_understated(file: _File) -> Understated | None:
    for at, size in _caf_parts(file):
        if file.at(at, 4) == b"data":
            there = size >= 0 and _is_sound(file, at + 12 + size, "big", 8)
            return Understated(at + 4, b"\xff" * 8) if there else None
    return None


def _w64_understated(file: _File) -> Understated | None:
    at = 40
    for _ in range(_MOST_PARTS):
        head = file.at(at, 24)
        size = int.from_bytes(head[16:], "little")
        if len(head) < 24 or not 24 <= size < 1 << 62:
            return None
        if head[:4] == b"data":
            end = at + size
            rest = file.at(end, _LEAST)
            known = head[4:16] in (rest[4:16], file.at(end + -size % 8, 16)[4:16])
            if len(rest) < _LEAST or known or not rest.strip(b"\0"):
                return None
            return Understated(at + 16, (file.size - at).to_bytes(8, "little"))
        at += size + -size % 8
    return None


def is_placeholder(claimed: int) -> bool:
    """Whether a length stands for "not known"."""
    if claimed <= 0 or claimed >= 1 << 62:
        return True
    return any(abs(claimed - known) <= _NEAR for known in _PLACEHOLDERS)


# ---------------------------------------------------------------- RIFF and its relatives
def _is_wav(head: bytes) -> bool:
    return head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def _wav_data(file: _File) -> tuple[int, int] | None:
    """Where the samples begin, and how many bytes of them the header claims."""
    wide = 0
    for name, at, size in _parts(file, 12, "little"):
        if name == b"ds64":
            wide = int.from_bytes(file.at(at + 8, 8), "little")
        if name == b"data":
            return at, wide if size == 0xFFFF_FFFF and wide else size
    return None


def _wav(file: _File) -> int:
    data = _wav_data(file)
    if data is None or is_placeholder(data[1]):
        return 0
    return sum(data) - file.size


def _aiff(file: _File) -> int:
    for name, at, size in _parts(file, 12, "big"):
        if name == b"SSND":
            return 0 if is_placeholder(size) else at + size - file.size
    return 0


def _avi(file: _File) -> int:
    missing = 0
    for name, at, size in _parts(file, 0, "little"):
        if name == b"RIFF" and not is_placeholder(size):
            missing = at + size - file.size
    return missing


def _w64(file: _File) -> int:
    claimed = int.from_bytes(file.at(16, 8), "little")
    return 0 if is_placeholder(claimed) else claimed - file.size


def _caf(file: _File) -> int:
    for at, size in _caf_parts(file):
        if not is_placeholder(size) and at + 12 + size > file.size:
            return at + 12 + size - file.size
    return 0


def _caf_parts(file: _File) -> Iterator[tuple[int, int]]:
    """Where parts begin, and their claimed sizes; -1 is one that is not known, the last."""
    at = 8
    for _ in range(_MOST_PARTS):
        head = file.at(at, 12)
        if len(head) < 12 or not _NAME.match(head):
            return
        size = int.from_bytes(head[4:], "big", signed=True)
        yield at, size
        if size < 0:
            return
        at += 12 + size


def _au(file: _File) -> int:
    begin, claimed = (int.from_bytes(file.at(at, 4), "big") for at in (4, 8))
    return 0 if is_placeholder(claimed) else begin + claimed - file.size


def _parts(file: _File, at: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, where its content begins, and claimed size, of parts one behind the other."""
    for _ in range(_MOST_PARTS):
        head = file.at(at, 8)
        if len(head) < 8 or not _NAME.match(head):
            return
        size = int.from_bytes(head[4:8], order)  # type: ignore[arg-type]
        yield head[:4], at + 8, size
        at += 8 + size + size % 2


def _is_sound(file: _File, end: int, order: str, width: int) -> bool:
    """Whether what lies behind the samples' claimed end is more of them.

    Args:
        order, width: of the size that follows a part's name of four letters.
    """
    rest = file.at(end, 1 << 16)
    if len(rest) < 8 or not rest.strip(b"\0") or rest.startswith(_TAGS):
        return False
    for at in {end, end + end % 2}:
        head = file.at(at, 4 + width)
        size = int.from_bytes(head[4:], order)  # type: ignore[arg-type]
        if _NAME.match(head) and at + 4 + width + size <= file.size + 1:
            return False
    return True


# ---------------------------------------------------------------- others
def _mp4(file: _File) -> int:
    at = 0
    for _ in range(_MOST_PARTS):
        head = file.at(at, 16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if len(head) < 8 or size < 8 or not _NAME.match(head, 4):
            return 0
        if at + size > file.size:
            return at + size - file.size
        at += size
    return 0


def _matroska(file: _File) -> int:
    at = 4
    length, size = _vint(file.at(at, 8))
    at += length + (size or 0)
    if file.at(at, 4) != b"\x18\x53\x80\x67":  # the segment, which holds all the rest
        return 0
    length, size = _vint(file.at(at + 4, 8))
    return 0 if size is None else at + 4 + length + size - file.size


def _vint(data: bytes) -> tuple[int, int | None]:
    """Bytes and value of one of Matroska's sizes; None for one that is not known."""
    if not data or not data[0]:
        return 1, None
    length = 9 - data[0].bit_length()
    value = int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1)
    return length, None if value == (1 << 7 * length) - 1 else value


def _ogg(file: _File) -> int:
    begin = max(0, file.size - _OGG_PAGE)
    tail = file.at(begin, _OGG_PAGE)
    at = tail.rfind(b"OggS\0")
    if at < 0:
        return 0
    count = tail[at + 26] if at + 27 <= len(tail) else 0
    table = tail[at + 27 : at + 27 + count]
    end = at + 27 + count + sum(table)
    return begin + end - file.size


def _mp3(file: _File) -> int:
    """By the table of a variable rate, which says how many bytes there are."""
    at = 0
    head = file.at(0, 10)
    if head[:3] == b"ID3" and len(head) == 10:
        at = 10 + sum((b & 0x7F) << 7 * (3 - i) for i, b in enumerate(head[6:10]))
    frame = file.at(at, 256)
    for name in (b"Xing", b"Info"):
        found = frame.find(name)
        if 4 <= found < 64 and frame[found + 7] & 2:
            behind = found + 8 + 4 * (frame[found + 7] & 1)
            claimed = int.from_bytes(frame[behind : behind + 4], "big")
            missing = at + claimed - file.size
            return 0 if is_placeholder(claimed) or missing < _VBR_SLACK else missing
    return 0


def _is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")


def _is_mp3(head: bytes) -> bool:
    return head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")


_FORMATS: tuple[tuple[Callable[[bytes], bool], Callable[[_File], int]], ...] = (
    (_is_wav, _wav),
    (_is_aiff, _aiff),
    (lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI ", _avi),
    (lambda head: head[:4] == b"riff", _w64),
    (lambda head: head[:4] == b"caff", _caf),
    (lambda head: head[:4] == b".snd", _au),
    (
        lambda head: head[4:8] in (b"ftyp", b"styp", b"moov", b"mdat", b"wide", b"free", b"skip"),
        _mp4,
    ),
    (lambda head: head[:4] == b"\x1aE\xdf\xa3", _matroska),
    (lambda head: head[:4] == b"OggS", _ogg),
    (_is_mp3, _mp3),
)
_UNDERSTATED: tuple[tuple[Callable[[bytes], bool], Callable[[_File], Understated | None]], ...] = (
    (_is_wav, _wav_understated),
    (_is_aiff, _aiff_understated),
    (lambda head: head[:4] == b"riff", _w64_understated),
    (lambda head: head[:4] == b"caff", _caf_understated),
)
