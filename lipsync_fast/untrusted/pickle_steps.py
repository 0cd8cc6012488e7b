# SPDX-License-Identifier: Apache-2.0
"""A pickle's operations, gone through on a stack of names: it may list tensors, and no more.

Nothing is done that an operation says: a tensor is a name that is called with a tuple, and its
numbers are a storage that a tuple names. Those tuples are kept, so that what they claim can be held
against the bytes that are there; all else is forgotten at once.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from typing import IO, Any

from lipsync_fast.errors import UnsafePickleError
from lipsync_fast.untrusted import limits

DAMAGED = "it is damaged, or no checkpoint at all"
_REBUILDS = re.compile(r"torch\._utils\._rebuild_(tensor|tensor_v2|parameter|parameter_with_state)")
_TYPES = re.compile(r"torch\.(\w+Storage|storage\.\w+Storage|[a-z]+\d+\w*|bool)")
_ORDERED, _DEVICE = "collections.OrderedDict", "torch.device"
_MARK, _VALUE = object(), None
_TUPLE = 6
"""Longest tuple whose parts are kept: a storage's in the older form."""
_PUSHED: dict[str, Any] = {
    **dict.fromkeys(("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT"), _VALUE),
    **dict.fromkeys(("BINFLOAT", "SHORT_BINSTRING"), _VALUE),
    "EMPTY_TUPLE": (),
    "MARK": _MARK,
}
_KEPT = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")
_TAKEN = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LIST = ("PROTO", "EMPTY_LIST", "BINPUT", "LONG_BINPUT", "MARK", "APPEND", "APPENDS", "STOP")


@dataclass(frozen=True, slots=True)
class StorageClaim:
    """Numbers that a tensor list refers to.

    Attributes:
        kind: torch's name of their type, such as ``torch.FloatStorage``.
        count: how many there are.
    """

    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class _Named:
    """A function or type that a pickle names; never looked up."""

    name: str


class _Bounded:
    """A file of which no more is read than the list of tensors may have."""

    def __init__(self, file: IO[bytes]) -> None:
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


def claimed_storages(file: IO[bytes]) -> dict[str, StorageClaim]:
    """The storages of one pickle, by their key; the file stands behind the pickle then.

    Raises:
        UnsafePickleError: it does more than list tensors, or is none.
    """
    steps = _Steps()
    try:
        for operation, argument, _ in pickletools.genops(_Bounded(file)):  # type: ignore[arg-type]
            steps.step(operation.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError):  # of genops, or of a stack
        raise UnsafePickleError(DAMAGED) from None
    return steps.storages


def listed_keys(file: IO[bytes]) -> list[str]:
    """One pickle that is a list of texts.

    Raises:
        UnsafePickleError: it is anything else.
    """
    keys: list[str] = []
    try:
        steps = pickletools.genops(_Bounded(file))  # type: ignore[arg-type]
        for number, (operation, argument, _) in enumerate(steps):
            name = operation.name
            if name == "BINUNICODE" and number > 1:
                keys.append(str(argument))
            elif (number == 1) != (name == "EMPTY_LIST") or name not in _LIST:
                raise UnsafePickleError(DAMAGED)
    except (ValueError, IndexError, TypeError, OverflowError):
        raise UnsafePickleError(DAMAGED) from None
    return keys


class _Steps:
    """The stack: names, texts, whole numbers and short tuples of them; for all else nothing."""

    def __init__(self) -> None:
        self.storages: dict[str, StorageClaim] = {}
        self._stack: list[Any] = []
        self._kept: dict[int, Any] = {}

    def step(self, name: str, argument: object) -> None:
        """One operation."""
        stack = self._stack
        if name in _PUSHED:
            stack.append(_PUSHED[name])
        elif name in _KEPT:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Named(_allowed(str(argument).replace(" ", "."))))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._kept[int(str(argument))] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._kept[int(str(argument))])
        elif name in ("TUPLE", "APPENDS", "SETITEMS"):
            self._since_mark(keep=name == "TUPLE")
        elif name in _TAKEN:
            del stack[-_TAKEN[name] :]
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [_VALUE]
        elif name == "BINPERSID":
            self._storage(stack.pop())
        elif name == "REDUCE":
            self._reduce()
        elif name not in ("PROTO", "STOP"):
            raise UnsafePickleError(
                f"its list of tensors has the operation {name}, more than tensors need"
            )

    def _since_mark(self, *, keep: bool) -> None:
        taken = []
        while (value := self._stack.pop()) is not _MARK:
            taken.append(_VALUE if isinstance(value, tuple) else value)
        if keep:
            self._stack.append(tuple(taken[::-1]) if 0 < len(taken) <= _TUPLE else _VALUE)

    def _storage(self, value: Any) -> None:
        match value:
            case ("storage", _Named(name=kind), str(key), str(), int(count), *_) if count >= 0:
                claim = StorageClaim(kind, count)
                if self.storages.setdefault(key, claim) != claim:
                    raise UnsafePickleError(f"it gives the numbers {key[:20]!a} two sizes")
            case _:
                raise UnsafePickleError(DAMAGED)
        self._stack.append(_VALUE)

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, _Named) else ""
        plain = _REBUILDS.fullmatch(name) or name == _DEVICE
        if not plain and not (name == _ORDERED and arguments == ()):
            raise UnsafePickleError(f"it calls {name[:100] or 'a value'}, more than tensors need")
        self._stack.append(_VALUE)


def _allowed(name: str) -> str:
    if name in (_ORDERED, _DEVICE) or _REBUILDS.fullmatch(name) or _TYPES.fullmatch(name):
        return name
    plain = "".join(c if c.isprintable() else "?" for c in name.removeprefix("builtins."))
    raise UnsafePickleError(f"it holds {plain[:100]}, more than tensors (nothing of it has run)")
