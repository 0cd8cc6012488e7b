# SPDX-License-Identifier: Apache-2.0
"""Which part of a video an avatar plays again and again, so that its joint is hardly seen.

Frames are compared by small grey pictures of the face and what is around it. Where the last frame
is followed by the first (``cycle``), the one that the video itself has next must look like the
first, and so must its neighbours on both sides, or the motion would turn at the joint (the idea of
Video Textures, Schödl and others, 2000). Where none joins well, frames are played there and back
(``pingpong``), between two moments of least motion.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from lipsync_fast.prepare.stabilise import runs
from lipsync_fast.timing import FPS

SHORTEST_S = 2.0
"""A loop is at least so long where the video is."""
GOOD, GOOD_LEVELS = 1.3, 0.3
"""A cycle's seam may differ by so many times the median step between frames, and levels more."""
NEARLY = 1.15
"""Seams so much worse than the best one are as good, and the longest loop is taken of them."""
_NEIGHBOURS = ((-2, 0.5), (-1, 1.0), (0, 1.0), (1, 1.0), (2, 0.5))
_ROWS = 256

Kind = Literal["pingpong", "cycle"]


class Loop(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The part that is played: frames ``first`` to ``first + count - 1``."""

    kind: Kind
    first: int
    count: int
    seam: float = 0.0
    """Mean grey levels around the face at the joint (pingpong: at the turn that moves most)."""
    step: float = 0.0
    """The same between a frame and the next, the median."""


def choose(
    features: NDArray[np.float32],
    *,
    kind: Literal["auto", "pingpong", "cycle"] = "auto",
    longest_s: float = 60.0,
    cuts: list[int] | None = None,
    rest: NDArray[np.bool_] | None = None,
) -> Loop:
    """The loop of a video.

    Args:
        features: N x D: each frame's small grey picture, in grey levels.
        kind: "auto" takes a cycle if its seam is hardly more than a step between frames.
        longest_s: of the part.
        cuts: frames before which no loop may begin that ends behind them.
        rest: N: frames that may be played; None for all.
    """
    first, end = longest_piece(len(features), cuts or [], rest)
    part = features[first:end]
    most = max(2, int(longest_s * FPS))
    step = float(np.median(_steps(part))) if len(part) > 1 else 0.0
    found = None if kind == "pingpong" else _best_cycle(part, most)
    if found is not None:
        begin, count, seam = found
        if kind == "cycle" or seam <= GOOD * step + GOOD_LEVELS:
            return Loop(kind="cycle", first=first + begin, count=count, seam=seam, step=step)
    if kind == "cycle":
        count = min(most, len(part))
        seam = _difference(part[count - 1], part[0])
        return Loop(kind="cycle", first=first, count=count, seam=seam, step=step)
    begin, count, seam = _calmest_ends(part, most)
    return Loop(kind="pingpong", first=first + begin, count=count, seam=seam, step=step)


def longest_piece(
    frames: int, cuts: list[int], rest: NDArray[np.bool_] | None = None
) -> tuple[int, int]:
    """The longest part without a cut in it, of frames at rest alone: its first frame and its end.

    Args:
        rest: N; None for all.
    """
    pieces = list(zip([0, *cuts], [*cuts, frames], strict=True))
    if rest is not None:
        pieces = [(first + a, first + b) for first, end in pieces for a, b in runs(rest[first:end])]
    return max(pieces, key=lambda piece: piece[1] - piece[0], default=(0, 0))


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).mean())


def _steps(features: NDArray[np.float32]) -> NDArray[np.float32]:
    out: NDArray[np.float32] = np.abs(np.diff(features, axis=0)).mean(axis=1)
    return out


def _shortest(frames: int, most: int) -> int:
    return max(2, min(int(SHORTEST_S * FPS), frames // 2, most))


def _best_cycle(features: NDArray[np.float32], most: int) -> tuple[int, int, float] | None:
    """First frame, length and seam of the best cycle, or None if the video is too short.

    Candidates: frame b (which the video has after the last one played) looks like frame a.
    """
    frames, reach = len(features), 2
    least = _shortest(frames, most)
    if frames < least + 2 * reach + 1:
        return None
    centred = features - features.mean(axis=0)
    power = (centred * centred).sum(axis=1)
    kept: list[tuple[float, int, int]] = []
    for top in range(reach, frames - reach - least, _ROWS):
        rows = np.arange(top, min(top + _ROWS, frames - reach - least))
        near = _squares(centred, power, rows[0] - reach, rows[-1] + reach + 1)
        columns = frames - 2 * reach
        cost = np.zeros((len(rows), columns), np.float32)
        for shift, weight in _NEIGHBOURS:
            at = reach + shift
            cost += weight * near[at : at + len(rows), at : at + columns]
        length = np.arange(reach, frames - reach)[None, :] - rows[:, None]
        cost[(length < least) | (length > most)] = np.inf
        best = cost.argmin(axis=1)
        kept += [
            (float(cost[i, j]), int(rows[i]), int(j) + reach)
            for i, j in enumerate(best)
            if np.isfinite(cost[i, j])
        ]
    if not kept:
        return None
    lowest = min(kept)[0]
    # Costs are squares, so the factor is squared; the floor is a fifth of a level everywhere.
    limit = lowest * NEARLY**2 + 4 * features.shape[1] * 0.2**2
    _, a, b = max((k for k in kept if k[0] <= limit), key=lambda k: (k[2] - k[1], -k[0], -k[1]))
    return a, b - a, _difference(features[b - 1], features[a])


def _squares(
    centred: NDArray[np.float32], power: NDArray[np.float32], first: int, end: int
) -> NDArray[np.float32]:
    """Squared distances of frames [first, end) to all frames."""
    out: NDArray[np.float32] = (
        power[first:end, None] + power[None, :] - 2 * centred[first:end] @ centred.T
    )
    return np.maximum(out, 0, out=out)


def _calmest_ends(features: NDArray[np.float32], most: int) -> tuple[int, int, float]:
    """First frame, length and step at the turns of the part between two calm moments.

    The ends lie in the outer quarters of what may be played.
    """
    frames = len(features)
    if frames < 3:
        return 0, frames, _difference(features[0], features[-1])
    steps = _steps(features)
    # A slower video shows pictures twice, between which nothing moves: the step beside counts too.
    speed = (
        steps + np.maximum(np.append(steps[1:], steps[-1]), np.append(steps[0], steps[:-1]))
    ) / 2
    least = _shortest(frames, most)
    zone = max(1, min(frames, most) // 4)
    # A turn at frame a shows frame a + 1 before and after it; at frame e, frame e - 1.
    first = int(np.argmin(speed[: max(zone, frames - most + zone)]))
    latest = min(frames, first + most)
    earliest = max(first + least, latest - zone)
    last = earliest + int(np.argmin(speed[earliest - 2 : latest - 1])) - 1
    count = last - first + 1
    return first, count, float(max(steps[first], steps[last - 1]))
