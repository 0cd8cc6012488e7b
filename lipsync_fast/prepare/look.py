# SPDX-License-Identifier: Apache-2.0
"""The long part of preparing: find landmarks in all frames of a video, and code them.

Three threads share the work, so that two processors are busy with one video: one decodes pictures
ahead, one finds landmarks, each from the frame before, and one codes frames and writes parts. What
comes out does not depend on which is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.jpeg import encode_image
from lipsync_fast.errors import PrepareError
from lipsync_fast.media.video import Picture, Video
from lipsync_fast.prepare.ahead import Ahead
from lipsync_fast.prepare.detectors import Detector, check_points, found_points
from lipsync_fast.prepare.parts import PART_FRAMES, Part, WorkFolder
from lipsync_fast.prepare.request import Progress, Request
from lipsync_fast.timing import FPS

GREY_SIDE = 128
_BATCH, _BATCH_BYTES = 20, 32 << 20
_AHEAD, _AHEAD_BYTES = 8, 16 << 20

OnProgress = Callable[[Progress], None]
Coded = Future[tuple[bytes, NDArray[np.uint8]]]


def look(
    request: Request, video: Video, detector: Detector, work: WorkFolder, on_progress: OnProgress
) -> Part:
    """Find landmarks in all frames that are not done, and code them; returns the last part.

    Raises:
        LipsyncError: it cannot be gone on with; the parts that are whole are kept.
        OSError: a part cannot be written.
    """
    done, whole = work.done()
    if not whole:
        with ThreadPoolExecutor(1, "code") as coder:
            _look(request, video, _Looker(request, video, detector, work, coder), done, on_progress)
    return work.last()


def _look(
    request: Request, video: Video, looker: _Looker, done: int, on_progress: OnProgress
) -> None:
    limit = round(request.longest_s * FPS)
    expected = min(limit, round(((video.seconds or 0) - request.start_s) * FPS))
    pictures = video.pictures(
        skip=done, start=Fraction(request.start_s).limit_denominator(1000), limit=limit
    )
    with Ahead(pictures, _few(_AHEAD, _AHEAD_BYTES, video.bytes_each)) as ahead:
        for picture in ahead:
            if picture.rgb is not None:
                looker.add(picture)
                on_progress(
                    Progress("looking", picture.index + 1, max(expected, picture.index + 1))
                )
            elif not picture.index % FPS:
                on_progress(Progress("finding its place again", picture.index, done))
    looker.flush(last=True)


def _few(most: int, most_bytes: int, each: int) -> int:
    return max(1, min(most, most_bytes // max(1, each)))


class _Looker:
    """Gathers a part and keeps it when the next one begins (so that the last one is known)."""

    def __init__(
        self,
        request: Request,
        video: Video,
        detector: Detector,
        work: WorkFolder,
        coder: ThreadPoolExecutor,
    ) -> None:
        self._request, self._video, self._detector, self._work = request, video, detector, work
        self._coder = coder
        self._written: Future[None] | None = None
        self._first = work.done()[0]
        newest = work.newest()
        self._before = None if newest is None else newest.landmarks()[-1]
        self._offset = round(request.start_s * FPS)
        self._batch: list[NDArray[np.uint8]] = []
        self._points: list[NDArray[np.float32]] = []
        self._coded: list[Coded] = []
        self._shown: NDArray[np.uint8] | None = None
        self._size = (0, 0)

    def add(self, picture: Picture) -> None:
        """Take the next frame."""
        rgb = picture.rgb
        assert rgb is not None
        if len(self._coded) == PART_FRAMES:
            self.flush(last=False)
        if rgb is self._shown and self._coded:  # a slower video shows it again
            self._coded.append(self._coded[-1])
        else:
            self._coded.append(self._coder.submit(_code, rgb, self._request))
        self._shown, self._size = rgb, (rgb.shape[1], rgb.shape[0])
        self._batch.append(rgb)
        if len(self._batch) >= _few(_BATCH, _BATCH_BYTES, rgb.nbytes):
            self._detect()

    def _detect(self) -> None:
        if self._batch:
            first = self._offset + self._first + len(self._coded) - len(self._batch)
            spec = self._request.landmarks or self._request.detector
            follow = getattr(self._detector, "follow", None)
            if follow is not None:
                known = self._before is not None and bool(np.isfinite(self._before).all())
                follow(self._before if known else None)
            points = found_points(self._detector, self._batch, first, spec)
            if self._before is None:
                check_points(points.shape[1], getattr(self._detector, "corners", None), spec)
            elif points.shape[1] != len(self._before):
                raise PrepareError(f"detector {spec}: returns changing numbers of points")
            self._points.append(points)
            self._before = points[-1]
            self._batch = []
            self._coded[-1].result()  # no more pictures than a batch wait to be coded

    def flush(self, *, last: bool) -> None:
        """Keep what is gathered."""
        self._detect()
        points = np.concatenate(self._points)
        coded = [one.result() for one in self._coded]
        greys = np.stack([grey for _, grey in coded])
        part = Part(
            first=self._first,
            last=last,
            count=len(points),
            point_count=points.shape[1],
            points=points.tobytes(),
            jpegs=[jpeg for jpeg, _ in coded],
            grey_size=(greys.shape[1], greys.shape[2]),
            greys=greys.tobytes(),
            begins=str(self._video.begins or 0),
            size=self._size,
            rotation=self._video.rotation,
            warnings=[*(self._video.warnings if last else ()), *self._noticed()],
        )
        if self._written is not None:
            self._written.result()
        self._written = self._coder.submit(self._work.add, part)
        if last:
            self._written.result()
        self._first += part.count
        self._points, self._coded = [], []

    def _noticed(self) -> list[str]:
        """What the detector has noticed so far."""
        return [str(text) for text in getattr(self._detector, "warnings", ())]


def _code(rgb: NDArray[np.uint8], request: Request) -> tuple[bytes, NDArray[np.uint8]]:
    """A frame as a JPEG, and small and grey."""
    image = Image.fromarray(rgb)
    return encode_image(image, request.jpeg), small_grey(image)


def small_grey(image: Image.Image) -> NDArray[np.uint8]:
    """A grey copy of at most 128 pixels a side, each the mean of a square."""
    grey = image.convert("L")
    return np.asarray(grey.reduce(max(1, -(-max(grey.size) // GREY_SIDE))))
