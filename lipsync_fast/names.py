# SPDX-License-Identifier: Apache-2.0
"""Names of files, which are bytes: shown to people, and written as JSON, whatever they hold.

Python keeps bytes of a name that are no UTF-8 (GBK, Latin-1) as lone surrogates, so that the file
is still found. Encoders of UTF-8 refuse those. In JSON they are escaped, as Python's own ``json``
does it: ``os.fsencode`` of what a reader gets are the file's bytes again.
"""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_BYTES = re.compile("[\udc80-\udcff]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def shown(text: str) -> str:
    """``text`` with bytes that are no UTF-8 as ``\\xc4``, and what else cannot be seen escaped."""
    if text.isprintable():
        return text
    plain = _BYTES.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)


def json_bytes(value: object, indent: int | None = None) -> bytes:
    """``value`` as msgspec writes it; where a text is no Unicode, in ASCII with escapes."""
    try:
        data = msgspec.json.encode(value)
    except UnicodeEncodeError:
        between = (",", ":") if indent is None else (",", ": ")
        plain = msgspec.to_builtins(value)
        return json.dumps(plain, indent=indent, separators=between).encode()
    return data if indent is None else msgspec.json.format(data, indent=indent)


def json_value(data: bytes, kind: type[T] | Any) -> Any:
    """What ``json_bytes`` wrote, as ``kind``.

    Raises:
        msgspec.DecodeError: it is something else.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        try:
            return msgspec.convert(json.loads(data), kind)
        except ValueError as error:  # of json, or msgspec's own
            raise msgspec.DecodeError(str(error)) from None
