# SPDX-License-Identifier: Apache-2.0
"""The parts, in the order of what they are worth, and how the time is shared between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DONE = ("ok", "failed")
"""How a part has ended that has done all it had to do: in the latter, checks were not good."""
TOTAL_S = 570.0
"""Seconds that all parts may take together, of ten minutes."""
REPORT_S = 12.0
"""Kept for the report and its plots."""
LEAST_S = 8.0
"""A part that would have less is not begun."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the check.

    Attributes:
        name: of its module.
        title: in the report.
        limit_s: it is killed after that, or when the time of all is over.
        needs: parts that must have come to their end, whatever they have found.
    """

    name: str
    title: str
    limit_s: float
    needs: tuple[str, ...] = ()


PARTS = (
    Part("environment", "Environment, and the packages that were brought along", 60),
    Part("build", "Building the extension with nvcc for sm_90", 170),
    Part("avatars", "Avatars to measure with", 60, ("build",)),
    Part("floors", "Floors: copies, matrix products, launches", 45, ("build",)),
    Part("parity", "Parity, stage by stage", 90, ("build",)),
    Part("kernels", "Kernels and networks against their floors", 75, ("build",)),
    Part("engine", "The engine: windows in a ring to JPEGs in a ring", 150, ("avatars",)),
    Part("live", "Live sessions, 25 frames/s each", 80, ("avatars",)),
    Part("sanitizer", "compute-sanitizer", 110, ("build",)),
    Part("server", "The whole server", 110, ("avatars",)),
    Part("profile", "Hardware counters (ncu)", 60, ("build",)),
    Part("loader", "Loading frames: DALI and Pillow", 30, ("build",)),
)


def named(names: Sequence[str]) -> tuple[Part, ...]:
    """Parts by name, in their order, with those that they need; all of them for no names.

    Raises:
        ValueError: there is no such part.
    """
    by_name = {part.name: part for part in PARTS}
    for name in names:
        if name not in by_name:
            raise ValueError(f"part {name!r}: expected one of {', '.join(by_name)}")
    wanted = set(names or by_name)
    for part in reversed(PARTS):
        if part.name in wanted:
            wanted.update(part.needs)
    return tuple(part for part in PARTS if part.name in wanted)


def allowed(part: Part, left_s: float) -> float | None:
    """Seconds that a part may take when so many are left of all; None: it is not begun."""
    seconds = min(part.limit_s, left_s - REPORT_S)
    return seconds if seconds >= LEAST_S else None


def missing(part: Part, statuses: Mapping[str, str]) -> str | None:
    """Why a part cannot run, given how others ended; None where it can."""
    for name in part.needs:
        status = statuses.get(name, "not begun")
        if status not in DONE:
            return f"needs the part {name}, which {_HOW.get(status, status)}"
    return None


_HOW = {
    "broke": "broke off",
    "cannot run": "could not run",
    "timed out": "ran out of time",
    "not begun": "has not run",
}
