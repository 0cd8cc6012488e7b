# SPDX-License-Identifier: Apache-2.0
"""Whether a checkpoint's pickle does no more than list tensors: looked at before it is read.

torch's ``weights_only`` runs nothing foreign, but still calls what takes memory or time as the file
says: ``bytearray(2**40)``, a list copied a million times. So the few operations that a state dict
consists of are gone through here without doing them, on a stack of names.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

from lipsync_fast.errors import UnsafePickleError
from lipsync_fast.untrusted import limits

_REBUILDS = re.compile(r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)")
_TYPES = re.compile(r"torch\.(\w+Storage|storage\.\w+Storage|[a-z]+\d+\w*|bool)")
_ORDERED, _DEVICE = "collections.OrderedDict", "torch.device"
_MARK, _NOTHING, _VALUE = "(", "()", ""
_PUSHED = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT"), _VALUE),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), _VALUE),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), _VALUE),
    "EMPTY_TUPLE": _NOTHING,
    "MARK": _MARK,
}
_TAKEN = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_REPLACED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "BINPERSID": 1}
_LEGACY_PICKLES = 5
"""A file of the older form begins with so many: magic, version, machine, tensors, storages."""


def check_checkpoint(path: Path) -> None:
    """Look at a file in either of torch's two forms.

    Raises:
        UnsafePickleError: see above.
        OSError: it cannot be read.
    """
    # Not waiting: it may be a pipe that nobody fills.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(4) == b"PK\x03\x04":
            _check_zip(file, size)
            return
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            _check_pickle(file)


def _check_zip(file: BinaryIO, size: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            if any(info.filename.split("/")[-1] == "constants.pkl" for info in infos):
                raise UnsafePickleError("it is a TorchScript archive, expected a state dict")
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos):
                raise UnsafePickleError("its members are compressed, which torch never does")
            if sum(info.file_size for info in infos) > size:
                raise UnsafePickleError("its members are larger than the file that they are in")
            lists = [info for info in infos if info.filename.split("/")[-1] == "data.pkl"]
            if len(lists) != 1:
                raise UnsafePickleError("it is damaged, or no checkpoint at all")
            with archive.open(lists[0]) as data:
                _check_pickle(data)  # type: ignore[arg-type]
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError, RuntimeError):
        raise UnsafePickleError("it is damaged, or no checkpoint at all") from None


class _Bounded:
    """A file of which no more is read than the list of tensors may have."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, limits.PICKLE_BYTES

    def _take(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data

    def _allowed(self, size: int) -> int:
        if size > self._left or self._left <= 0:
            raise UnsafePickleError(
                f"its list of tensors is longer than {limits.PICKLE_BYTES} bytes"
            )
        return self._left if size < 0 else size

    def read(self, size: int = -1) -> bytes:
        return self._take(self._file.read(self._allowed(size)))

    def readline(self) -> bytes:
        return self._take(self._file.readline(min(1000, self._allowed(-1))))


def _check_pickle(file: BinaryIO) -> None:
    stack: list[str] = []
    kept: dict[int, str] = {}
    try:
        for operation, argument, _ in pickletools.genops(_Bounded(file)):  # type: ignore[arg-type]
            _step(operation.name, argument, stack, kept)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError):  # of genops, or of a stack
        raise UnsafePickleError("it is damaged, or no checkpoint at all") from None


def _step(name: str, argument: object, stack: list[str], kept: dict[int, str]) -> None:
    """One operation, on a stack that holds globals' names, and otherwise what kind of thing."""
    if name in _PUSHED:
        stack.append(_PUSHED[name])
    elif name == "GLOBAL":
        stack.append(_allowed(str(argument).replace(" ", ".")))
    elif name in ("BINPUT", "LONG_BINPUT"):
        kept[int(str(argument))] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(kept[int(str(argument))])
    elif name in ("TUPLE", "APPENDS", "SETITEMS"):
        while stack.pop() != _MARK:
            pass
        if name == "TUPLE":
            stack.append(_VALUE)
    elif name in _TAKEN:
        del stack[-_TAKEN[name] :]
    elif name in _REPLACED:
        del stack[-_REPLACED[name] :]
        stack.append(_VALUE)
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        plain = _REBUILDS.fullmatch(function) or function == _DEVICE
        if not plain and (function, arguments) != (_ORDERED, _NOTHING):
            raise UnsafePickleError(
                f"it calls {function[:100] or 'a value'}, more than tensors need"
            )
        stack.append(_VALUE)
    elif name not in ("PROTO", "STOP"):
        raise UnsafePickleError(
            f"its list of tensors has the operation {name}, more than tensors need"
        )


def _allowed(name: str) -> str:
    if name in (_ORDERED, _DEVICE) or _REBUILDS.fullmatch(name) or _TYPES.fullmatch(name):
        return name
    plain = "".join(c if c.isprintable() else "?" for c in name.removeprefix("builtins."))
    raise UnsafePickleError(f"it holds {plain[:100]}, more than tensors (nothing of it has run)")
