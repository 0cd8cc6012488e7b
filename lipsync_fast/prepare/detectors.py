# SPDX-License-Identifier: Apache-2.0
"""Where landmarks come from: the detector that ships, files, dlib, or anyone's own detector.

A detector of one's own is a plug-in: an entry point of the group ``lipsync_fast.detectors``, or
``--detector module:function``. Either names a callable that takes the options given on the command
line (``--detector-option key=value``, as keywords) and returns a ``Detector``::

    class Mine:
        corners = (12, 3, 27)          # left, top, right of the face crop among the K points

        def detect(self, pictures, first):
            out = np.full((len(pictures), 40, 2), np.nan, np.float32)
            ...                        # x, y in pixels; NaN where no face is
            return out

    def make(**options: str) -> Mine: ...

The face crop goes from ``left`` to ``right``, which lie where the ears begin, and from ``top``, on
the bridge of the nose below the eyes, as far down as it is wide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lipsync_fast import plugins
from lipsync_fast.errors import PrepareError

GROUP = "lipsync_fast.detectors"
SHIPPED = {
    "dlib": "lipsync_fast.prepare.dlib_detector:DlibDetector",
    "mesh": "lipsync_fast.prepare.mesh_detector:MeshDetector",
}
MOST_POINTS = 1000
SURE = 0.5
"""From this confidence on a face counts as found."""

_SCHEMES: dict[int, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    3: ((0,), (1,), (2,)),
    68: ((0, 1), (28,), (15, 16)),  # a contour of 17 points where the one of 110 has 33
    110: ((1,), (52,), (31,)),
    468: ((234,), (195,), (454,)),
    478: ((234,), (195,), (454,)),
}
_WIDER: dict[int, float] = {468: 1.13, 478: 1.10}
"""The crop is so many times as wide as left and right are apart: points of MediaPipe's mesh lie
before the ears. Fitted to SyncTalk_2D's mean face, which they meet within 0.015 of its side."""


class Detector(Protocol):
    """Finds one face's landmarks in pictures.

    Attributes (all optional):
        corners: which of the K points are left, top and right of the face crop; not needed for
            K = 110 (as SyncTalk_2D has them), 68 (as dlib has them), 468 and 478 (MediaPipe's mesh,
            without and with irises) and 3 (left, top, right).
        version: a word that changes when results do; work that was begun with another is not
            gone on with.
        warnings: sentences on what was noticed, gathered by ``detect``.
        follow: a method that is called before each ``detect`` with the landmarks (K x 2 float32)
            of the frame before, None where there were none. That is all that a detector may
            remember: so a run that was interrupted comes to the same result.
    """

    def detect(self, pictures: Sequence[NDArray[np.uint8]], first: int) -> NDArray[Any]:
        """Landmarks in some frames that follow each other.

        Args:
            pictures: B frames of the video at 25 a second, each H x W x 3 uint8 RGB.
            first: the number of the first one, counted from the video's beginning.

        Returns:
            B x K x 2 float32, x and y in pixels from the upper left, K the same each time, NaN
            where there is no face; or B x K x 3, the third a confidence from 0 to 1 (a face
            counts where the mean over its points is at least 0.5).
        """
        ...


Factory = Callable[..., Detector]


def open_detector(spec: str, options: Mapping[str, str]) -> Detector:
    """The detector of that name, or of ``module:function``.

    Raises:
        PrepareError: there is none, its options are wrong, or it cannot start.
    """
    make = _factory(spec)
    try:
        return make(**options)
    except PrepareError:
        raise
    except Exception as error:  # somebody else's code: whatever it raises is for the user to read
        raise PrepareError(
            f"detector {spec}: cannot start ({type(error).__name__}: {error})"
        ) from error


def check_spec(spec: str) -> None:
    """What can be said of a detector's name without loading it.

    Raises:
        PrepareError: no such detector; names those that are there.
    """
    if ":" in spec:
        if not plugins.is_place(spec):
            raise PrepareError(f"detector {spec!r}: expected a name or module:function")
        return
    known = plugins.known(GROUP, SHIPPED)
    if spec not in known:
        raise PrepareError(
            f"there is no detector {spec!r} (known: {', '.join(known)}, or"
            " module:function); landmarks in files are taken with --landmarks"
        )


def _factory(spec: str) -> Factory:
    check_spec(spec)
    try:
        found = plugins.load(spec, GROUP, SHIPPED)
    except (ImportError, AttributeError) as error:
        raise PrepareError(f"detector {spec}: cannot be loaded ({error})") from error
    if not callable(found):
        raise PrepareError(f"detector {spec}: is not a function that makes a detector")
    return found


def found_points(
    detector: Detector, pictures: Sequence[NDArray[np.uint8]], first: int, spec: str
) -> NDArray[np.float32]:
    """What ``detect`` found, checked: B x K x 2 float32, NaN where there is no face.

    Raises:
        PrepareError: the detector failed, or returned something else.
    """
    try:
        raw = detector.detect(pictures, first)
        points = np.asarray(raw, np.float32)
    except PrepareError:
        raise
    except Exception as error:
        raise PrepareError(
            f"detector {spec}: failed at frame {first} ({type(error).__name__}: {error})"
        ) from error
    shape = points.shape
    good = len(shape) == 3 and shape[0] == len(pictures) and 3 <= shape[1] <= MOST_POINTS
    if not good or shape[2] not in (2, 3):
        raise PrepareError(
            f"detector {spec}: returned shape {shape}, expected {len(pictures)} x K x 2 or 3"
        )
    bad = ~np.isfinite(points[:, :, :2]).all(axis=(1, 2)) | (
        np.abs(np.nan_to_num(points[:, :, :2])).max(axis=(1, 2)) > 1e6
    )
    if shape[2] == 3:
        bad |= ~(points[:, :, 2].mean(axis=1) >= SURE)
    out = np.ascontiguousarray(points[:, :, :2])
    out[bad] = np.nan
    return out


def check_points(count: int, named: tuple[int, int, int] | None, spec: str) -> None:
    """Whether a face crop can be made of so many landmarks; see ``corners_of``.

    Raises:
        PrepareError: it cannot.
    """
    if named is not None:
        if not all(type(i) is int and 0 <= i < count for i in named) or len(named) != 3:
            raise PrepareError(f"detector {spec}: corners {named} are not three of {count} points")
    elif count not in _SCHEMES:
        known = ", ".join(map(str, sorted(_SCHEMES)[1:]))
        raise PrepareError(
            f"{spec}: {count} landmarks; {known} or 3 (left, top, right) are understood, others"
            " need a detector with 'corners'"
        )


def corners_of(
    points: NDArray[np.float32], named: tuple[int, int, int] | None, spec: str
) -> NDArray[np.float64]:
    """Left, top and right of the face crop: N x 3 (x, y, x), NaN where there is no face.

    Args:
        points: N x K x 2.
        named: which of the K they are, where the detector says so.

    Raises:
        PrepareError: the detector does not say which of its points they are.
    """
    count = points.shape[1]
    check_points(count, named, spec)
    wider = 1.0
    if named is not None:
        scheme: tuple[tuple[int, ...], ...] = tuple((i,) for i in named)
    else:
        scheme, wider = _SCHEMES[count], _WIDER.get(count, 1.0)
    left, top, right = (points[:, list(ids)].astype(np.float64).mean(axis=1) for ids in scheme)
    middle, half = (left[:, 0] + right[:, 0]) / 2, wider * (right[:, 0] - left[:, 0]) / 2
    return np.stack([middle - half, top[:, 1], middle + half], axis=1)
