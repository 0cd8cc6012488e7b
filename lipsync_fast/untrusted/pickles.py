# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint does no more than list tensors: looked at before torch reads it.

torch's ``weights_only`` runs nothing foreign, but still calls what takes memory or time as the file
says: ``bytearray(2**40)``, a list copied a million times; and releases before 2.6 had ways around
it. So the few operations that a state dict consists of are gone through here without doing them
(``pickle_steps``).

Which of its forms a file has torch decides from its bytes: a zip, a tar, or five pickles and the
numbers behind them. It is decided here by the same rules, and a file must be one of two forms from
its first byte to its last: the zip that ``torch.save`` writes, or the five pickles that it wrote
before. A file that could be read in another way, too, is refused.
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import BinaryIO

from lipsync_fast.errors import UnsafePickleError
from lipsync_fast.untrusted.lookalikes import what_is, what_zip_is
from lipsync_fast.untrusted.pickle_steps import (
    DAMAGED,
    StorageClaim,
    claimed_storages,
    listed_keys,
)

_ZIP = b"PK\x03\x04"
_LEGACY = re.compile(
    rb"\x80[\x02\x03]\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.\x80[\x02\x03]M\xe9\x03\.", re.DOTALL
)
"""The older form's first two pickles: its magic number, and the protocol's, 1001."""
_MEMBERS = re.compile(
    r"(?P<top>[^/\\]+)/(?:data\.pkl|data/(?P<key>\d{1,20})|version|byteorder|\.format_version"
    r"|\.storage_alignment|\.data/serialization_id)"
)
"""All that ``torch.save`` has ever put into its zip."""
_SIZES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
    "Untyped": 1,
}
_END, _END64, _LOCATOR = 22, 56, 20
_UTF8, _SIZES_BEHIND = 0x800, 0x8


def check_checkpoint(path: Path) -> None:
    """Look at a file in either of torch's two forms.

    Raises:
        UnsafePickleError: see above.
        OSError: it cannot be read.
    """
    # Not waiting: it may be a pipe that nobody fills.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(tarfile.BLOCKSIZE)
        if head.startswith(_ZIP):
            _check_zip(file, size)
        elif (begin := _LEGACY.match(head)) is None:
            known = what_is(file)
            raise UnsafePickleError(f"it is {known}" if known else DAMAGED)
        elif _is_tar(head):
            raise UnsafePickleError("it is a tar archive as well, which torch would read instead")
        else:
            file.seek(begin.end())
            _check_legacy(file, size)


def _is_tar(head: bytes) -> bool:
    """Whether tarfile, and so torch, would take it for a tar."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


# ---------------------------------------------------------------- five pickles, and numbers
def _check_legacy(file: BinaryIO, size: int) -> None:
    """The machine it was written on, the tensors, the order of their numbers; the numbers."""
    if claimed_storages(file):
        raise UnsafePickleError(DAMAGED)
    claims = claimed_storages(file)
    keys = listed_keys(file)
    at = file.tell()
    if len(set(keys)) != len(keys) or not set(keys) <= set(claims):
        raise UnsafePickleError(DAMAGED)
    for key in keys:
        file.seek(at)
        (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))
        if count != claims[key].count:
            raise UnsafePickleError("it is cut off, or its tensors have other sizes than it says")
        at += 8 + _bytes_of(claims[key])
    if at > size:
        raise UnsafePickleError(f"it is cut off: {at - size} bytes are missing")
    if at < size:
        raise UnsafePickleError(f"{size - at} bytes follow its end, which no checkpoint has")


def _bytes_of(claim: StorageClaim) -> int:
    plain = claim.kind.removeprefix("torch.").removeprefix("storage.").removesuffix("Storage")
    if plain not in _SIZES:
        raise UnsafePickleError(f"it holds {claim.kind[:100]}, more than tensors need")
    return _SIZES[plain] * claim.count


# ---------------------------------------------------------------- a zip
def _check_zip(file: BinaryIO, size: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            claims = _check_members(archive, infos, size)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError):
        raise UnsafePickleError(what_zip_is(file) or DAMAGED) from None
    _check_ends(file, size, len(infos))
    sizes = {m["key"]: i.file_size for i in infos if (m := _MEMBERS.fullmatch(i.filename))}
    for key, claim in claims.items():
        if key not in sizes or sizes[key] < _bytes_of(claim):
            raise UnsafePickleError(f"its tensors need more numbers than {key[:20]!a} has")


def _check_members(
    archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], size: int
) -> dict[str, StorageClaim]:
    if any(info.filename.split("/")[-1] == "constants.pkl" for info in infos):
        raise UnsafePickleError("it is a TorchScript archive, expected a state dict")
    found = [(info.filename, _MEMBERS.fullmatch(info.filename)) for info in infos]
    lists = [n for n, match in found if match is not None and n == f"{match['top']}/data.pkl"]
    if not lists:
        raise UnsafePickleError(what_zip_is(archive.fp) or DAMAGED)  # type: ignore[arg-type]
    for name, match in found:
        if match is None or match["top"] != lists[0].split("/")[0]:
            raise UnsafePickleError(
                f"it holds {ascii(name[-100:])[1:-1]}, which no checkpoint of torch's has"
            )
    if len({name for name, _ in found}) != len(found):
        raise UnsafePickleError("it holds two members of one name")
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
        raise UnsafePickleError("its members are compressed, which torch never does")
    if any(info.flag_bits & ~(_UTF8 | _SIZES_BEHIND) for info in infos):
        raise UnsafePickleError("its members are encrypted, which torch never does")
    if sum(info.file_size for info in infos) > size:
        raise UnsafePickleError("its members are larger than the file that they are in")
    with archive.open(lists[0]) as data:
        claims = claimed_storages(data)
        if data.read(1):
            raise UnsafePickleError("its list of tensors goes on behind its end")
    return claims


def _check_ends(file: BinaryIO, size: int, count: int) -> None:
    """The directory is the last thing in the file, and all that says where it is agrees.

    Readers look for it in different ways where it is not so, and find different ones.
    """
    tail = min(size, _END + _LOCATOR + _END64)
    file.seek(size - tail)
    data = file.read(tail)
    disks, _, here, entries, length, begin, comment = struct.unpack("<4xHHHHIIH", data[-_END:])
    behind = _END
    if len(data) == _END + _LOCATOR + _END64 and data[_END64:].startswith(b"PK\x06\x07"):
        behind += _LOCATOR + _END64
        where, wide = struct.unpack("<4x4xQ4x", data[_END64:-_END])[0], data[:_END64]
        entries64, length64, begin64 = struct.unpack("<4x28xQQQ", wide)
        narrow = (entries, 0xFFFF, entries64), (length, 0xFFFF_FFFF, length64)
        agreed = all(a in (most, b) for a, most, b in (*narrow, (begin, 0xFFFF_FFFF, begin64)))
        if not agreed or where != size - behind or not wide.startswith(b"PK\x06\x06"):
            raise UnsafePickleError("its directory contradicts itself")
        here, entries, length, begin = entries64, entries64, length64, begin64
    first = data[-_END:].startswith(b"PK\x05\x06") and comment == 0
    if not first or begin + length != size - behind:
        raise UnsafePickleError("something follows its directory, or lies within, as in no zip of"
                                " torch's")  # fmt: skip
    if disks or here not in (entries, 0xFFFF) or entries != count:
        raise UnsafePickleError("its directory contradicts itself")
