# SPDX-License-Identifier: Apache-2.0
"""What a caller may give: checked before anything is sent, and named where it cannot be."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

M = TypeVar("M", bound=msgspec.Struct)
SHOWN = 40
"""Characters of a value that a message repeats."""


def checked(message: M) -> M:
    """A message whose fields are what the protocol allows.

    Raises:
        ValueError: one is not; it is named as the caller's argument.
    """
    try:
        return msgspec.convert(msgspec.to_builtins(message), type(message))
    except (msgspec.ValidationError, TypeError, OverflowError) as error:
        what, _, path = str(error).partition(" - at `$.")
        if not path:
            raise ValueError(what) from None
        names = path.rstrip("`").split(".")
        value: object = message
        for name in names:
            value = getattr(value, name)
        allowed = what[:1].lower() + what[1:].replace("`", "")
        raise ValueError(f"{names[-1]} {repr(value)[:SHOWN]}: {allowed}") from None


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """See that an argument is one of a few words.

    Raises:
        ValueError: it is not.
    """
    if value not in allowed:
        raise ValueError(f"{name} {repr(value)[:SHOWN]}: expected {' or '.join(allowed)}")


def plain(value: Any) -> Any:
    """A whole number of another kind (NumPy's) as Python's; anything else as it is."""
    return operator.index(value) if hasattr(type(value), "__index__") else value


def is_seconds(value: object) -> bool:
    """Whether it is a time, more than none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def check_address(url: object, token: object, open_timeout: object, ssl: object = None) -> None:
    """See that a server can be asked like this.

    Raises:
        ValueError: one of them cannot be.
    """
    if not isinstance(url, str) or not url.startswith(("ws://", "wss://")):
        raise ValueError(
            f"url {repr(url)[:SHOWN]}: expected ws://HOST:PORT or wss://…, such as a server prints"
        )
    try:
        urlsplit(url).port  # noqa: B018, looked at for what it raises
    except ValueError as error:
        raise ValueError(f"url {repr(url)[:SHOWN]}: {error}") from None
    if ssl is not None and not url.startswith("wss://"):
        raise ValueError(f"ssl: {repr(url)[:SHOWN]} speaks no TLS; expected wss://…")
    if not isinstance(token, str) or not token.isprintable():
        raise ValueError("token: expected a string without line breaks")
    if not is_seconds(open_timeout):
        raise ValueError(
            f"open_timeout {repr(open_timeout)[:SHOWN]}: expected seconds, more than 0"
        )


def check_headers(headers: Mapping[str, str] | None) -> Mapping[str, str] | None:
    """Headers of a request, once it is known that they can be such.

    Raises:
        ValueError: one cannot; it is named, its value is not.
    """
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            raise ValueError(f"headers: {repr(name)[:SHOWN]} is no header's name")
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise ValueError(f"headers: the value of {name} is no line of ASCII")
    return headers
