# SPDX-License-Identifier: Apache-2.0
"""Boxes in a pickle from a stranger, read without the pickle module: nothing of it can run.

A pickle is a list of operations on a stack. Those that build lists, tuples and whole numbers are
done here, on values of our own; numpy's whole numbers, which faces found by numpy are written as,
are read from their bytes by the pattern that numpy writes. All else is refused by its name. The
file's bytes and its operations are counted, and what an operation makes is no larger than a list's
or tuple's head and what it takes, so neither memory nor time can grow beyond that.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.avatars.importing.videos import check_count
from lipsync_fast.errors import AvatarImportError
from lipsync_fast.untrusted import limits
from lipsync_fast.untrusted.files import read_file
from lipsync_fast.untrusted.lookalikes import refused_as

EXPECTED = "a pickled list of (y1, y2, x1, x2), whole numbers"
_LARGEST = 1 << 31
_WHOLE = re.compile(r"[iu][1248]")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "UNICODE")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "SHORT_BINSTRING")
_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1")
_PLAIN = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_DTYPE, _ENCODE = "numpy.dtype", "_codecs.encode"
_MARK = object()


class _RefusedError(Exception):
    """It holds something else; the message says what."""


@dataclass(slots=True)
class _Named:
    """A function or type that a pickle names; never looked up."""

    name: str


@dataclass(slots=True)
class _Dtype:
    """A kind of whole number of numpy, such as ``i8``."""

    kind: str
    order: str = "<"


def read_coords(path: Path, root: Path) -> NDArray[np.float64]:
    """The face boxes of a LiveTalking avatar, N x 4: x1, y1, x2, y2.

    Args:
        root: a resolved folder that the file must lie in, wherever links lead.

    Raises:
        AvatarImportError: missing, too large, or anything but a list of boxes.
    """
    try:
        data = read_file(path, EXPECTED, limits.COORDS_BYTES, root)
    except FileNotFoundError:
        raise AvatarImportError(f"{path}: missing; expected {EXPECTED}") from None
    try:
        boxes = _boxes(_Reader().value(data))
    except _RefusedError as reason:
        raise AvatarImportError(f"{path}: {reason}; expected {EXPECTED}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError):
        raise AvatarImportError(
            f"{path}: is damaged, or not a pickle{refused_as(path)}; expected {EXPECTED}"
        ) from None
    check_count(len(boxes), path)
    y1, y2, x1, x2 = np.array(boxes, np.float64).T
    return np.stack([x1, y1, x2, y2], axis=1)


def _boxes(value: Any) -> list[Any]:
    """What was read, once it is a list of boxes."""
    if type(value) is not list:
        raise _RefusedError("it holds no list")
    for k, box in enumerate(value):
        if type(box) not in (tuple, list) or len(box) != 4:
            raise _RefusedError(f"entry {k} is not four numbers")
        if any(type(v) is not int or abs(v) > _LARGEST for v in box):
            raise _RefusedError(f"entry {k} holds more than whole numbers")
    return value


class _Reader:
    """The stack of a pickle, on which only what boxes consist of can be put."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._kept: dict[int, Any] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "EMPTY_LIST": lambda _: self._stack.append([]),
            "EMPTY_TUPLE": lambda _: self._stack.append(()),
            "MARK": lambda _: self._stack.append(_MARK),
            "LIST": lambda _: self._stack.append(self._since_mark()),
            "TUPLE": lambda _: self._stack.append(tuple(self._since_mark())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._append([self._stack.pop()]),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "MEMOIZE": lambda _: self._keep(len(self._kept)),
            "GLOBAL": lambda name: self._name(str(name).replace(" ", ".")),
            "STACK_GLOBAL": lambda _: self._stack_name(),
            "REDUCE": lambda _: self._reduce(),
            "BUILD": lambda _: self._build(),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._keep),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), self._again),
            **dict.fromkeys((*_NUMBERS, *_STRINGS, *_BYTES), self._stack.append),
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
        }

    def value(self, data: bytes) -> Any:
        """What a pickle holds.

        Raises:
            _RefusedError: it does what it need not.
            ValueError, IndexError, KeyError, TypeError: it is none.
        """
        for step, (operation, argument, _) in enumerate(pickletools.genops(data)):
            name = operation.name
            if step > limits.COORDS_STEPS:
                raise _RefusedError(f"it has more than {limits.COORDS_STEPS} operations")
            if name == "STOP":
                break
            if name in _PLAIN:
                self._stack.append(_PLAIN[name])
            elif name in self._steps:
                self._steps[name](argument)
            else:
                raise _RefusedError(f"it has the operation {name}, more than boxes need")
        (value,) = self._stack
        return value

    def _since_mark(self) -> list[Any]:
        taken = []
        while (value := self._stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def _tuple(self, count: int) -> None:
        taken = tuple(self._stack[-count:])
        if len(taken) != count:
            raise ValueError(count)
        self._stack[-count:] = [taken]

    def _append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("no list")
        target += values

    def _keep(self, number: int) -> None:
        self._kept[int(number)] = self._stack[-1]

    def _again(self, number: int) -> None:
        self._stack.append(self._kept[int(number)])

    def _stack_name(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("no names")
        self._name(f"{module}.{name}")

    def _name(self, name: str) -> None:
        if name not in (*_SCALARS, _DTYPE, _ENCODE):
            plain = "".join(c if c.isprintable() else "?" for c in name.removeprefix("builtins."))
            raise _RefusedError(f"it holds {plain[:100]}, more than boxes (nothing of it has run)")
        self._stack.append(_Named(name))

    def _reduce(self) -> None:
        """What numpy's whole numbers are made by, and nothing else."""
        given, function = self._stack.pop(), self._stack.pop()
        name = function.name if isinstance(function, _Named) else ""
        if name == _DTYPE and _is(given, str, 1):
            if not _WHOLE.fullmatch(given[0]):
                raise _RefusedError(f"it holds numbers of the kind {given[0][:20]!a}")
            self._stack.append(_Dtype(given[0]))
        elif name == _ENCODE and _is(given, str, 2) and given[1] == "latin1":
            self._stack.append(given[0].encode("latin1"))  # as protocols up to 2 write bytes
        elif name in _SCALARS and len(given) == 2 and isinstance(given[0], _Dtype):
            self._stack.append(_number(*given))
        else:
            raise _RefusedError(f"it calls {name or 'a value'} otherwise than boxes need")

    def _build(self) -> None:
        state, dtype = self._stack.pop(), self._stack[-1]
        if not isinstance(dtype, _Dtype) or type(state) is not tuple or len(state) != 8:
            raise _RefusedError("it sets what boxes do not have")
        if state[1] not in ("<", ">", "|") or state[2:5] != (None, None, None):
            raise _RefusedError("it holds numbers of another kind than whole ones")
        dtype.order = state[1]


def _is(given: Any, kind: type, least: int) -> bool:
    """Whether arguments begin with so many of a kind (a dtype's go on with two flags)."""
    return type(given) is tuple and least <= len(given) <= 3 and type(given[least - 1]) is kind


def _number(dtype: _Dtype, data: Any) -> int:
    if type(data) is str:  # protocols up to 2, as Python 2 wrote them
        data = data.encode("latin1")
    if type(data) is not bytes or len(data) != int(dtype.kind[1]):
        raise ValueError("a number of another size")
    order = "big" if dtype.order == ">" else "little"
    return int.from_bytes(data, order, signed=dtype.kind[0] == "i")  # type: ignore[arg-type]
