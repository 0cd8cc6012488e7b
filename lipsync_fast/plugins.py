# SPDX-License-Identifier: Apache-2.0
"""Functions that others bring: by a name (an entry point of a group), or as module:function."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from importlib.metadata import entry_points


def is_place(spec: str) -> bool:
    """Whether it may be a ``module:function``; a name has no colon."""
    return re.fullmatch(r"[\w.]+:[\w.]+", spec) is not None


def known(group: str, shipped: Mapping[str, str]) -> list[str]:
    """All names, sorted: ours, and those of the group."""
    return sorted({*shipped, *(point.name for point in entry_points(group=group))})


def load(spec: str, group: str, shipped: Mapping[str, str]) -> object:
    """What a name, or a place, stands for. Somebody else's name goes before ours.

    Args:
        spec: one of ``known``, or a place.
        shipped: our places, by name.

    Raises:
        ImportError, AttributeError: it cannot be loaded.
    """
    points = [] if ":" in spec else list(entry_points(group=group, name=spec))
    if points:
        return points[0].load()
    module, _, path = shipped.get(spec, spec).partition(":")
    found: object = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found
