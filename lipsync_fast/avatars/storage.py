# SPDX-License-Identifier: Apache-2.0
"""The members of an avatar package, mapped into memory: a folder, or an uncompressed zip (.lsa).

Nothing in a package is trusted: names, counts, offsets and sizes are checked against the file
before they are used, and nothing is read that is larger than the file itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import mmap
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lipsync_fast import _native
from lipsync_fast.errors import AvatarFormatError, AvatarNotFoundError, words_of
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.lookalikes import refused_as

ALIGNMENT = 64
PIECE = 8 << 20
"""Bytes of a mapped file that are gone through at a time."""
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
_LOCAL = struct.Struct("<4s5H3L2H")
_NPY_MAGIC = b"\x93NUMPY"
_DTYPES = {"|u1": np.uint8, "|b1": np.bool_, "<i4": np.int32, "<u4": np.uint32, "<u8": np.uint64}


_HELD_OPEN = re.compile(r"/proc/\d+/fd/\d+")


def path_for_people(path: Path) -> Path:
    """What people call a file that is opened by the descriptor that a process has of it."""
    if _HELD_OPEN.fullmatch(str(path)):
        with contextlib.suppress(OSError):
            return Path(os.readlink(path).removesuffix(" (deleted)"))
    return path


def copied(view: memoryview, path: Path) -> bytes:
    """Bytes of a mapped file as they are now: whoever cuts the file short meanwhile kills nobody.

    Raises:
        AvatarFormatError: the file has lost some of them.
    """
    try:
        return _native.mapped_bytes(view)
    except OSError:
        raise shorter(path) from None


def shorter(path: Path) -> AvatarFormatError:
    """The error of a file that has lost some of what is mapped."""
    return AvatarFormatError(f"{path}: has become shorter while it was in use")


def _crc32(view: memoryview, path: Path) -> int:
    found = 0
    for at in range(0, len(view), PIECE):
        found = zlib.crc32(copied(view[at : at + PIECE], path), found)
    return found


def safe_name(name: str) -> bool:
    """Whether a member's name is a plain relative path that stays inside the package."""
    parts = name.split("/")
    return (
        0 < len(name) <= limits.NAME_CHARACTERS
        and name.isascii()
        and name.isprintable()
        and "\\" not in name
        and ":" not in name
        and all(p not in ("", ".", "..") for p in parts)
    )


class _ZipFile(io.FileIO):
    """A file that refuses to read more at once than a package's directory may have."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = limits.DIRECTORY_BYTES
        if size is not None and size > most:
            raise zipfile.BadZipFile(f"its directory has {size} bytes, more than {most}")
        return super().read(most if size is None or size < 0 else size) or b""


class Storage:
    """Read-only members by name; views stay valid while anything refers to them.

    Raises:
        AvatarNotFoundError: nothing at the path.
        AvatarFormatError: not a package, or one that is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path_for_people(path)
        """What it is called; what is opened may be a descriptor of it (``_where``)."""
        self._where = path
        self._views: dict[str, memoryview] = {}
        self._maps: list[mmap.mmap] = []
        if os.path.isdir(path):
            self._folder = True
            try:
                self._root = os.path.realpath(path, strict=True)
            except OSError as error:
                raise AvatarFormatError(f"{self.path}: cannot be read ({error.strerror})") from None
        elif os.path.isfile(path):
            self._folder = False
            self._open_zip()
        else:
            raise AvatarNotFoundError(f"{self.path}: no such avatar package")

    def _map(self, name: str = "") -> memoryview:
        """A file's bytes: a member's of a folder, else the whole zip's."""
        path = self._where / name
        try:
            # Not waiting: what was a file a moment ago may have become a pipe that nobody fills.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise AvatarFormatError(f"{self.path / name}: is not a file")
                if self._folder:
                    self._check_inside(name, file.fileno())
                if about.st_size == 0:
                    return memoryview(b"")
                with contextlib.suppress(OSError):  # as long as it is mapped, see cache.py
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                made = mmap.mmap(file.fileno(), about.st_size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise AvatarFormatError(
                f"{self.path / name}: cannot be read ({words_of(error)})"
            ) from None
        self._maps.append(made)
        return memoryview(made)

    def _check_inside(self, name: str, fd: int) -> None:
        """Refuse what lies elsewhere, by what was opened: links may have changed since."""
        where = os.readlink(f"/proc/self/fd/{fd}")
        if os.path.commonpath([self._root, where]) != self._root:
            raise AvatarFormatError(
                f"{self.path}: {name} is a link that leads out of the package; copy its file in"
            )

    def intact(self) -> bool:
        """Whether the files still have the bytes that are mapped.

        Reading a mapped byte that a file has lost kills the process. A file that was deleted, or
        replaced by another one, is kept as it was.
        """
        return all(m.size() >= len(m) for m in self._maps)

    def _open_zip(self) -> None:
        whole = self._map()
        try:
            with _ZipFile(self._where) as file, zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
        except (
            zipfile.BadZipFile,
            OSError,
            ValueError,
            struct.error,
            NotImplementedError,
            UnicodeDecodeError,
            EOFError,
            OverflowError,
        ) as error:
            raise AvatarFormatError(
                f"{self.path}: not an avatar package ({words_of(error)}){refused_as(self._where)}"
            ) from None
        if len(infos) > limits.MEMBERS:
            raise AvatarFormatError(
                f"{self.path}: has {len(infos)} members, more than {limits.MEMBERS}"
            )
        for info in infos:
            name = info.filename
            if name.endswith("/"):  # a folder
                continue
            if not safe_name(name) or name in self._views:
                raise AvatarFormatError(f"{self.path}: member {name[:80]!r} is not a plain name")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise AvatarFormatError(
                    f"{self.path}: member {name} is compressed; it must be stored"
                )
            at = info.header_offset
            if at < 0 or at + _LOCAL.size > len(whole):
                raise AvatarFormatError(f"{self.path}: member {name} lies outside the file")
            header = _LOCAL.unpack(copied(whole[at : at + _LOCAL.size], self.path))
            start = at + _LOCAL.size + header[9] + header[10]
            if header[0] != b"PK\x03\x04" or start + info.file_size > len(whole):
                raise AvatarFormatError(f"{self.path}: member {name} lies outside the file")
            self._views[name] = whole[start : start + info.file_size]
            # The manifest has the checksums of all other members; this is its own.
            if name == MANIFEST and _crc32(self._views[name], self.path) != info.CRC:
                raise AvatarFormatError(f"{self.path}: {name} is damaged (its checksum differs)")

    def names(self) -> list[str]:
        """All members' names (of a zip; of a folder those opened so far)."""
        return sorted(self._views)

    def member(self, name: str) -> memoryview | None:
        """A member's bytes without a copy, or None if there is none of that name."""
        if not safe_name(name):
            raise AvatarFormatError(f"{self.path}: member {name[:80]!r} is not a plain name")
        if name not in self._views and self._folder:
            if not os.path.isfile(self._where / name):
                return None
            self._views[name] = self._map(name)
        return self._views.get(name)

    def close(self) -> None:
        """Forget all views; the mapping goes when nothing refers to it any more."""
        self._views = {}
        self._maps = []


def read_array(data: memoryview, where: str) -> NDArray[np.generic]:
    """A .npy file as an array over its bytes, without a copy and without pickles.

    Raises:
        AvatarFormatError: another type than the package uses, or a shape that is not the data's.
    """
    head = copied(data[: 10 + 1_000], Path(where))
    if len(head) < 10 or head[:6] != _NPY_MAGIC or head[6] != 1:
        raise AvatarFormatError(f"{where}: not an array file")
    length = int.from_bytes(head[8:10], "little")
    text = head[10 : 10 + length]
    if len(text) != length or length > 1_000:
        raise AvatarFormatError(f"{where}: its header is cut off")
    import ast

    try:
        header = ast.literal_eval(text.decode("ascii"))
        kind, order, shape = header["descr"], header["fortran_order"], header["shape"]
    except (
        ValueError,
        SyntaxError,
        KeyError,
        TypeError,
        UnicodeDecodeError,
        MemoryError,
        RecursionError,
    ):
        raise AvatarFormatError(f"{where}: its header cannot be read") from None
    if (
        not isinstance(kind, str)
        or kind not in _DTYPES
        or order is not False
        or not isinstance(shape, tuple)
    ):
        raise AvatarFormatError(f"{where}: arrays of {kind!r} are not used in packages")
    if len(shape) > 4 or not all(type(n) is int and 0 <= n <= 1 << 40 for n in shape):
        raise AvatarFormatError(f"{where}: shape {shape} cannot be")
    dtype = np.dtype(_DTYPES[kind])
    count = 1
    for n in shape:
        count *= n
    if count * dtype.itemsize != len(data) - 10 - length:
        raise AvatarFormatError(f"{where}: shape {shape} does not fit its {len(data)} bytes")
    if count == 0:
        raise AvatarFormatError(f"{where}: shape {shape} is empty")
    return np.frombuffer(data, dtype, count, 10 + length).reshape(shape)


def write_array(array: NDArray[np.generic]) -> bytes:
    """The .npy form that ``read_array`` accepts."""
    import io

    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def check_sizes(storage: Storage, sizes: Mapping[str, int]) -> None:
    """Hold members against what a manifest says of them, in bytes.

    Raises:
        AvatarFormatError: one is missing, or of another size.
    """
    for name, size in sizes.items():
        found = storage.member(name)
        if found is None or len(found) != size:
            have = "is missing" if found is None else f"has {len(found)} bytes"
            raise AvatarFormatError(f"{storage.path}: {name} {have}, expected {size} bytes")


def checked_offsets(
    index: memoryview, size: int, count: int, where: str, name: str
) -> NDArray[np.uint64]:
    """Offsets of ``count`` byte strings that lie one behind the other in ``name``.bin: a copy.

    Args:
        index: ``name``.npy.
        size: of ``name``.bin.
        where: the package, for messages.

    Raises:
        AvatarFormatError: they do not fit it.
    """
    stored = read_array(index, f"{where}/{name}.npy")
    good = stored.dtype == np.uint64 and stored.shape == (count + 1,)
    offsets = np.frombuffer(copied(stored.data, Path(where)) if good else b"", np.uint64)
    grows = bool(np.all(offsets[1:] >= offsets[:-1]))
    if not good or not grows or offsets[0] != 0 or offsets[-1] != size:
        raise AvatarFormatError(f"{where}: the offsets of {name}.bin do not fit it")
    return offsets


def check_rects(rects: NDArray[np.int64], size: tuple[int, int], where: str) -> None:
    """Hold rectangles x1, y1, x2, y2 (N x 4) against the width and height of their frames.

    Raises:
        AvatarFormatError: one lies outside its frame.
    """
    start, end = rects[:, :2], rects[:, 2:]
    if np.any(start < 0) or np.any(end <= start) or np.any(end > size):
        raise AvatarFormatError(f"{where}: a face rectangle lies outside its frame")


def unpacked_mask(packed: bytes, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    """A mask, height x width of 0 and 1, from its bits (zlib).

    Args:
        size: width and height.
        where: which mask, for messages.

    Raises:
        AvatarFormatError: it is damaged, or of another size; no more is unpacked than it may have.
    """
    width, height = size
    whole = -(-width * height // 8)
    try:
        unpack = zlib.decompressobj()
        bits = unpack.decompress(packed, whole)
        if len(bits) != whole or unpack.decompress(unpack.unconsumed_tail, 1) or not unpack.eof:
            raise zlib.error("wrong size")
    except zlib.error as error:
        raise AvatarFormatError(f"{where} is damaged ({error})") from None
    flat = np.unpackbits(np.frombuffer(bits, np.uint8), count=width * height)
    return flat.reshape(height, width)
