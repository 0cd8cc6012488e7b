# SPDX-License-Identifier: Apache-2.0
"""The results of a benchmark, as they are written: a versioned JSON object of rows.

A row is one measurement of one thing in one round; medians over rounds are made when it is read.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

SCHEMA = 1
Kind = Literal["throughput", "live", "peer", "ours", "sweep"]


class Row(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One measurement.

    Attributes:
        kind: "throughput" (frames as fast as they come), "live" (sessions on clocks of their own),
            "peer" and "ours" (the same avatar, in turn), "sweep" (cost over work).
        name: what was measured; with ``kind`` and ``round`` it is unlike all others.
        settings: sessions, engines, avatars, content, quality, width, threads.
        frames, seconds: counted; their quotient is ``frames_per_s``.
        latency_ms: from the moment at which a frame's last needed sample was due.
        cpu_ms_per_frame: of each of the server's roles, and of the load generator.
        engine_ms_per_frame: the engines' part of that, by what it was spent on.
        hops_ms: mean time between two points on a frame's way, from the moment at which its last
            needed sample was due to its bytes at the client, over ``traced`` frames; ``mean_ms``
            is the mean of the whole way as the client alone saw it, over all frames.
        refused: utterances that were not admitted, of those in ``settings``; nothing is expected of
            them.
        private_mb, shared_mb: of each process at the end.
        compared, different: sampled frames, and those that are not what ``render`` gives.
    """

    kind: Kind
    name: str
    round: int = 0
    settings: dict[str, Any] = {}
    frames: int = 0
    seconds: float = 0.0
    frames_per_s: float = 0.0
    latency_ms: dict[str, float] = {}
    expected: int = 0
    late: int = 0
    lost: int = 0
    twice: int = 0
    skipped: int = 0
    refused: int = 0
    compared: int = 0
    different: int = 0
    wrong: list[str] = []
    bytes_per_frame: float = 0.0
    cpu_ms_per_frame: dict[str, float] = {}
    engine_ms_per_frame: dict[str, float] = {}
    hops_ms: dict[str, float] = {}
    traced: int = 0
    mean_ms: float = 0.0
    private_mb: dict[str, float] = {}
    shared_mb: dict[str, float] = {}

    @property
    def is_right(self) -> bool:
        """No frame wrong, twice, lost or out of order."""
        return not (self.wrong or self.different or self.lost or self.twice)


class Report(msgspec.Struct, kw_only=True):
    """A run of the benchmark.

    Attributes:
        schema: of this object.
        not_measured: what was left out, and why.
    """

    schema: int = SCHEMA
    command: str
    version: str
    commit: str = ""
    date: str = ""
    wall_s: float = 0.0
    machine: dict[str, Any]
    rows: list[Row] = []
    not_measured: list[str] = []
    sentence: str = ""


class Spread(msgspec.Struct, frozen=True):
    """Values of several rounds."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of one value or more.

        Raises:
            statistics.StatisticsError: of none.
        """
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


def by_name(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows of the same thing together, in the order in which it was first measured."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.kind, row.name), []).append(row)
    return found


def rates(rows: Iterable[Row], kind: Kind, name: str) -> list[float]:
    """Frames a second of one thing in each round."""
    return [row.frames_per_s for row in rows if (row.kind, row.name) == (kind, name)]


def ratios(rows: Iterable[Row], other: str) -> list[float]:
    """In each round: ours against a peer."""
    rows = list(rows)
    ours = {row.round: row.frames_per_s for row in rows if row.kind == "ours"}
    return [
        ours[row.round] / row.frames_per_s
        for row in rows
        if row.kind == "peer" and row.name == other and row.round in ours and row.frames_per_s
    ]
