# SPDX-License-Identifier: Apache-2.0
"""From jittering landmarks to a face crop that moves as the head does.

Each of the crop's numbers (middle, top, side) is one series over time:

1. short stretches without a face are bridged on a straight line; long ones are refused;
2. a value that stands out from its 9 neighbours is replaced by their median (one wrong frame);
3. the series is cut where the face jumps and stays there (the video was cut);
4. each piece is smoothed by a quadratic through 13 frames, taken in its middle (Savitzky and
   Golay, 1964): as many frames ahead as behind, so the crop does not lag behind the head;
5. the side becomes one number for all frames where the head keeps its distance, else it follows
   slowly, by a straight line through 51 frames.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.errors import PrepareError
from lipsync_fast.geometry import Rect
from lipsync_fast.timing import FPS

BRIDGE = 12
"""Frames without a face that are bridged; half a second."""
SMALLEST_FACE, SMALL_FACE = 48, 160
CUT = 0.25
"""Part of its side by which a face that moves between two frames has been cut."""
STEADY = 0.06
"""Part of its side by which the side may change in all, and still be made one number."""
JUMP = 0.08
"""Part of the side by which the detector's side changes between two frames, worth a warning."""
EDGE = 0.02
_OUTLIER_REACH, _POSITION_REACH, _SIDE_REACH = 4, 6, 25
_MOUTH = (0.25, 0.30, 0.75, 0.75)
"""Where in the square the mouth lies at most: left, top, right, bottom."""

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Track:
    """The stabilised crops of all frames.

    Attributes:
        rects: N x 4 int32: x1, y1, x2, y2, clipped to the frame.
        bridged: how many frames had no face.
        cuts: frames at which the face jumps to another place.
    """

    rects: NDArray[np.int32]
    bridged: int
    cuts: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def side(self) -> float:
        """The crops' median width, in pixels."""
        return float(np.median(self.rects[:, 2] - self.rects[:, 0]))

    def rect(self, index: int) -> Rect:
        """The crop of a frame."""
        return Rect.from_corners(*self.rects[index].tolist())


def track(
    corners: Series,
    width: int,
    height: int,
    *,
    bridge: int = BRIDGE,
    mouths: Series | None = None,
) -> Track:
    """Stabilise and check.

    Args:
        corners: N x 3: left, top and right of the crop in pixels, NaN where there is no face.
        width, height: of the frame.
        bridge: the longest stretch without a face that is bridged, in frames.
        mouths: N x 4: where the lips are (left, top, right, bottom), NaN where there is no face;
            None where landmarks do not say: then the part of the crop where they lie at most.

    Raises:
        PrepareError: no face for too long, too small, or its mouth outside the picture; names the
            frames.
    """
    corners = np.array(corners, np.float64)
    corners[corners[:, 2] - corners[:, 0] < 8] = np.nan  # a face from its other side is none
    missing: NDArray[np.bool_] = np.asarray(np.isnan(corners).any(axis=1), np.bool_)
    _refuse_gaps(missing, bridge)
    filled = _bridged(corners, missing)
    side = filled[:, 2] - filled[:, 0]
    middle, top = (filled[:, 0] + filled[:, 2]) / 2, filled[:, 1]
    warnings = _jump_warnings(side)
    middle, top, side = (_without_outliers(s) for s in (middle, top, side))
    moved = np.hypot(np.diff(middle), np.diff(top)) > CUT * np.minimum(side[:-1], side[1:])
    cuts = [int(i) + 1 for i in np.flatnonzero(moved)]
    if cuts:
        warnings.append(f"the face jumps at {frames_text(cuts)}: is the video cut there?")
    pieces = list(zip([0, *cuts], [*cuts, len(side)], strict=True))
    for first, end in pieces:
        for series in (middle, top):
            series[first:end] = savitzky_golay(series[first:end], _POSITION_REACH, 2)
        side[first:end] = savitzky_golay(side[first:end], _SIDE_REACH, 1)
    if np.ptp(side) <= STEADY * np.median(side):
        side[:] = np.median(side)
    whole = np.round(side)
    x1, y1 = np.round(middle - whole / 2), np.round(top)
    _check_side(whole)
    warnings += _check_mouth(_mouths(x1, y1, whole, mouths), whole, width, height)
    rects = np.stack([x1, y1, x1 + whole, y1 + whole], axis=1)
    clipped = np.clip(rects, 0, [width, height, width, height]).astype(np.int32)
    beyond = np.flatnonzero((rects != clipped).any(axis=1))
    if len(beyond):
        most = (np.abs(rects - clipped).max(axis=1) / whole).max()
        warnings.append(
            f"the face crop passes the picture's edge in {frames_text(beyond)}, by up to"
            f" {100 * most:.0f}% of its side: leave more room around the face"
        )
    if missing.any():
        warnings.append(f"no face in {frames_text(np.flatnonzero(missing))} (bridged)")
    return Track(clipped, int(missing.sum()), cuts, warnings)


def savitzky_golay(values: Series, reach: int, degree: int) -> Series:
    """``values`` smoothed by polynomials through 2 reach + 1 of them, no lag.

    At both ends the polynomial through the outermost values is used. Fewer values than the window:
    a shorter window.
    """
    reach = min(reach, (len(values) - 1) // 2)
    size = 2 * reach + 1
    if size <= degree + 1:
        return values.copy()
    powers = np.vander(np.arange(-reach, reach + 1, dtype=np.float64), degree + 1)
    fitted = powers @ np.linalg.pinv(powers)  # row k: weights for the value at place k
    out = values.copy()
    out[reach:-reach] = np.convolve(values, fitted[reach][::-1], "valid")
    out[:reach] = fitted[:reach] @ values[:size]
    out[-reach:] = fitted[-reach:] @ values[-size:]
    return out


def _without_outliers(values: Series) -> Series:
    """Hampel's filter: what is more than 3 deviations from its neighbours' median becomes it."""
    reach = min(_OUTLIER_REACH, (len(values) - 1) // 2)
    if reach < 1:
        return values.copy()
    padded = np.pad(values, reach, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    median = np.median(windows, axis=1)
    deviation = 1.4826 * np.median(np.abs(windows - median[:, None]), axis=1)
    bad = np.abs(values - median) > np.maximum(3 * deviation, 1.0)
    return np.where(bad, median, values)


def runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Stretches of True: (first, end)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def frames_text(frames: NDArray[np.intp] | list[int]) -> str:
    """Frames as people name them: ``frames 3, 10-14 and 5 more``."""
    flags = np.zeros(int(max(frames)) + 1, bool)
    flags[frames] = True
    found = runs(flags)
    parts = [f"{a}" if b == a + 1 else f"{a}-{b - 1}" for a, b in found[:6]]
    more = f" and {len(found) - 6} more stretches" if len(found) > 6 else ""
    return f"frame{'s' if len(frames) > 1 else ''} {', '.join(parts)}{more}"


def _refuse_gaps(missing: NDArray[np.bool_], bridge: int) -> None:
    if missing.all():
        raise PrepareError(f"no face was found in any of the {len(missing)} frames")
    long = [(a, b) for a, b in runs(missing) if b - a > bridge]
    if long:
        parts = [f"{a}-{b - 1} ({a / FPS:.2f}-{b / FPS:.2f} s)" for a, b in long[:8]]
        more = f" and {len(long) - 8} more" if len(long) > 8 else ""
        raise PrepareError(
            f"no face in frames {', '.join(parts)}{more}; up to {bridge} frames in a row are"
            " bridged (--bridge): cut these parts out of the video, or use another detector"
        )


def _bridged(corners: Series, missing: NDArray[np.bool_]) -> Series:
    frames = np.arange(len(corners))
    out = corners.copy()
    for k in range(3):
        out[missing, k] = np.interp(frames[missing], frames[~missing], corners[~missing, k])
    return out


def _jump_warnings(side: Series) -> list[str]:
    change = np.abs(np.diff(side)) / np.minimum(side[:-1], side[1:])
    jumps = np.flatnonzero(change > JUMP) + 1
    if not len(jumps):
        return []
    return [
        f"the face's size jumps by up to {100 * change.max():.0f}% from one frame to the next"
        f" ({frames_text(jumps)}); this was smoothed"
    ]


def _check_side(side: Series) -> None:
    if side.min() < SMALLEST_FACE:
        raise PrepareError(
            f"the face is only {side.min():.0f} pixels wide"
            f" ({frames_text(np.flatnonzero(side < SMALLEST_FACE))}); {SMALLEST_FACE} are the least"
        )


def _mouths(x1: Series, y1: Series, side: Series, seen: Series | None) -> Series:
    """Where the mouths are: as they were seen (NaN where no face was), or at most in the crops."""
    if seen is not None:
        return seen
    shares = zip(_MOUTH, (x1, y1, x1, y1), strict=True)
    return np.stack([start + share * side for share, start in shares], axis=1)


def _check_mouth(mouths: Series, side: Series, width: int, height: int) -> list[str]:
    """Refuse a mouth outside the picture; warn of one near its edge, and of a small face."""
    left, top, right, bottom = mouths.T
    space = np.min([left, top, width - right, height - bottom], axis=0)
    outside = np.flatnonzero(space < 0)
    if len(outside):
        raise PrepareError(
            f"the mouth leaves the picture in {frames_text(outside)}; the whole face must be seen"
        )
    warnings = []
    near = np.flatnonzero(space < EDGE * min(width, height))
    if len(near):
        warnings.append(f"the mouth is near the picture's edge in {frames_text(near)}")
    if np.median(side) < SMALL_FACE:
        warnings.append(
            f"the face is {np.median(side):.0f} pixels wide; from {SMALL_FACE} on it looks sharp"
        )
    return warnings
