# SPDX-License-Identifier: Apache-2.0
"""Every figure of the server's status, listed from its types."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import msgspec

from lipsync_fast.ipc.status import ServerStatus

COUNTED = {
    "engines.load.store": (
        "found", "missed", "kept", "kept_bytes", "refused", "evicted", "mended",
    ),
    "fronts.load.utterances": ("hits", "misses", "at_once", "named"),
    "fronts.load.texts": ("said", "failed", "cut"),
    "fronts.load.latency_ms": ("p50", "p95", "p99", "most"),
}  # fmt: skip
"""Figures that stand by name in a mapping, and which they are."""


def _fields(kind: type[msgspec.Struct], inside: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        path, declared = f"{inside}{field.name}", hints[field.name]
        within = [
            part
            for part in (declared, *typing.get_args(declared))
            if isinstance(part, type) and issubclass(part, msgspec.Struct)
        ]
        if within and typing.get_origin(declared) is not dict:
            yield from _fields(within[0], f"{path}.")
        else:
            yield path, declared


KINDS: dict[str, Any] = dict(_fields(ServerStatus, ""))
"""The declared types of all fields, by their paths: engines.load.made."""
FIGURES = [
    figure
    for path in KINDS
    for figure in ([f"{path}.{n}" for n in COUNTED.get(path, ())] or [path])
]
"""The paths of all figures."""


def values(status: ServerStatus, figure: str) -> list[Any]:
    """What a figure says of everything that has it: of each engine, each front, or the server."""
    found: list[Any] = [msgspec.to_builtins(status)]
    for name in figure.split("."):
        found = [
            one.get(name, 0)
            for each in found
            for one in (each if isinstance(each, list) else [each])
        ]
    return found


def changed(status: ServerStatus, figure: str) -> ServerStatus:
    """A status in which one figure is another, of everything that has it."""
    plain = msgspec.to_builtins(status)
    *inside, last = figure.split(".")
    holders: list[Any] = [plain]
    for name in inside:
        holders = [
            one
            for each in holders
            for one in (each[name] if isinstance(each[name], list) else [each[name]])
        ]
    for holder in holders:
        holder[last] = _other(holder[last], KINDS.get(figure))
    return msgspec.convert(plain, ServerStatus)


def _other(value: Any, declared: Any) -> Any:
    if typing.get_origin(declared) is typing.Literal:
        return next(one for one in reversed(typing.get_args(declared)) if one != value)
    if isinstance(value, dict):
        return {name: _other(one, None) for name, one in value.items()}
    if isinstance(value, list):
        return [*value, *value]
    if isinstance(value, str):
        return value + "x"
    return value + (4_321_000_000 if isinstance(value, int) else 4_321.0)
