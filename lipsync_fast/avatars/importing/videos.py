# SPDX-License-Identifier: Apache-2.0
"""Avatars whose frames lie in a video: decoded once, and held against the crops beside it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast import _native
from lipsync_fast.avatars.importing.parts import MOST_FRAMES, Networks, Picture, Source, need_file
from lipsync_fast.avatars.importing.rectangles import settled
from lipsync_fast.errors import AvatarImportError, MediaError
from lipsync_fast.families.synctalk2d import REGION_BORDER, SYNCTALK2D
from lipsync_fast.geometry import Rect
from lipsync_fast.media.video import Video

COMPARED = 12
"""Frames whose crops are held against the package's own."""
SMALL = 82
FAR = 4.0
"""Grey levels, on average over a crop made 82 x 82, beyond which it is another crop: lossy videos
of the demo avatar differ by up to 1.4 (H.264 at crf 30) or 2.4 (crf 38), a rectangle that is 4
pixels off by 5.8."""
WHAT = "a video of the frames"
Rgb = NDArray[np.uint8]


def source_of(
    form: str,
    path: Path,
    video: str,
    given: NDArray[np.float64],
    numbered_by: str,
    networks: Networks,
    crops: tuple[str, int],
) -> Source:
    """An avatar whose frames are a video's pictures, one for each rectangle.

    Args:
        form: its name.
        path: the package.
        video: the name of the video.
        given: its rectangles, N x 4, NaN where there is none.
        numbered_by: where they are from.
        networks: its weights.
        crops: name and side of a video of the rectangles' contents, to hold against.

    Raises:
        AvatarImportError: no video, or rectangles that are not its.
    """
    warned: list[str] = []
    file = need_file(path / video, path, WHAT)
    frames = _decoded(file, warned)
    try:
        first = next(frames, None)
        if first is None:
            raise AvatarImportError(f"{file}: holds no picture that can be decoded")
        height, width = first.shape[:2]
        track = settled(given, width, height, str(path / numbered_by))
        check = CropCheck(path / crops[0], path, crops[1], track.rects)
    except BaseException:
        frames.close()
        raise
    warnings: list[str] = []
    pictures = _pictures(file, chain([first], frames), numbered_by, check, warned, warnings)
    return Source(form, path, width, height, track, networks, pictures, SYNCTALK2D, warnings)


def _decoded(path: Path, warnings: list[str]) -> Generator[Rgb]:
    try:
        with Video(path) as video:
            video.warnings = warnings
            yield from video.every()
    except MediaError as error:
        raise AvatarImportError(str(error)) from None


def _pictures(
    file: Path,
    frames: Iterator[Rgb],
    numbered_by: str,
    check: CropCheck,
    warned: list[str],
    warnings: list[str],
) -> Generator[Picture]:
    """As many as there are rectangles; then all warnings are known."""
    count, shown = check.count, 0
    for picture in frames:
        if shown == count:
            raise AvatarImportError(
                f"{file}: has more than {count} pictures, but {numbered_by} has {count}"
                " rectangles; expected one for each"
            )
        check.compare(shown, picture)
        yield Picture(f"{file}, picture {shown}", picture)
        shown += 1
    if shown < count:
        because = f" ({'; '.join(warned)})" if warned else ""
        raise AvatarImportError(
            f"{file}: has {shown} pictures{because}, but {numbered_by} has {count} rectangles;"
            " expected one for each"
        )
    warnings += [*warned, *check.finish()]


class CropCheck:
    """Holds the crops that rectangles give against the video of crops that a package has.

    Nothing is made of that video, so what is wrong with it is a warning.

    Args:
        path: of the video; it need not be there.
        side: of its pictures: 328 for whole crops, 320 for the region within.
    """

    def __init__(self, path: Path, root: Path, side: int, rects: list[Rect]) -> None:
        self._path, self._side, self._rects = path, side, rects
        self._chosen = {int(i) for i in np.linspace(0, len(rects) - 1, COMPARED)}
        self._furthest, self._at, self.count = 0.0, 0, len(rects)
        self.warnings: list[str] = []
        self._frames: Iterator[Rgb] | None = None
        try:
            need_file(path, root, "a video")
            self._frames = _decoded(path, [])
        except AvatarImportError as error:
            self.warnings.append(f"the face crops were not checked: {error}")

    def compare(self, number: int, picture: Rgb) -> None:
        """With the next crop; frames come in their order."""
        if self._frames is None:
            return
        try:
            own = next(self._frames, None)
        except AvatarImportError as error:
            own = None
            self.warnings.append(f"the face crops were not checked: {error}")
        if own is None or own.shape[:2] != (self._side, self._side):
            size = "nothing" if own is None else f"{own.shape[1]} x {own.shape[0]}"
            if not self.warnings:
                self.warnings.append(
                    f"{self._path}: {size} for frame {number}, expected a crop of {self._side} x"
                    f" {self._side}; the rest was not checked"
                )
            self._frames = None
        elif number in self._chosen:
            far = difference(own, picture, self._rects[number])
            if far > self._furthest:
                self._furthest, self._at = far, number

    def finish(self) -> list[str]:
        """All warnings."""
        if self._furthest > FAR:
            self.warnings.append(
                f"the face crop of frame {self._at} is not that of {self._path.name}: they differ"
                f" by {self._furthest:.1f} grey levels on average (up to {FAR:g} may come from"
                " lossy videos); do rectangles and video belong together?"
            )
        return self.warnings


def difference(own: Rgb, picture: Rgb, rect: Rect) -> float:
    """Grey levels between a package's crop and that of a rectangle, on average, both made small."""
    side = own.shape[0]
    border = 0 if side % 32 else REGION_BORDER  # whole crops have 8 pixels more than the region
    whole = side + 2 * border
    made = _native.resize_cubic(picture[rect.slices], whole, whole)
    made = made[border : border + side, border : border + side]
    small = [
        np.asarray(Image.fromarray(p).resize((SMALL, SMALL), Image.Resampling.BOX), np.float32)
        for p in (own, made)
    ]
    return float(np.abs(small[0] - small[1]).mean())


def check_count(count: int, where: Path) -> None:
    """Refuse more frames than an avatar may have.

    Raises:
        AvatarImportError: says how many.
    """
    if not 1 <= count <= MOST_FRAMES:
        raise AvatarImportError(
            f"{where}: {count} rectangles, expected 1 to {MOST_FRAMES} (one for each frame)"
        )
