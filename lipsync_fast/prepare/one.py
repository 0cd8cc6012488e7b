# SPDX-License-Identifier: Apache-2.0
"""Prepare one video: look at its frames once, then put the folder together.

The first stage is long and kept in parts (parts.py); the second takes seconds, and begins again
when it is interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.errors import AvatarError, OutputError, PrepareError
from lipsync_fast.media.video import Picture, Video
from lipsync_fast.names import json_value
from lipsync_fast.output.base import output_error
from lipsync_fast.prepare.assemble import REPORT, assemble, install
from lipsync_fast.prepare.detectors import (
    Detector,
    check_points,
    found_points,
    open_detector,
)
from lipsync_fast.prepare.folder import NAME, PreparedAvatar, Source, read_prepared
from lipsync_fast.prepare.landmark_files import LandmarkFiles
from lipsync_fast.prepare.parts import PART_FRAMES, Part, WorkFolder
from lipsync_fast.prepare.request import Progress, Request, Result
from lipsync_fast.timing import FPS

GREY_SIDE = 128
_BATCH, _BATCH_BYTES = 20, 32 << 20

OnProgress = Callable[[Progress], None]


def prepare_one(request: Request, on_progress: OnProgress) -> Result:
    """Prepare a video, or go on with it; returns at once if that is done already.

    Raises:
        LipsyncError: it cannot be prepared; what was done of it is kept where it can be of use.
    """
    try:
        check_target(request.dest)
        return _prepare(request, on_progress)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise output_error(request.dest, error) from error
        raise OutputError(f"{error.filename or request.dest}: {error.strerror or error}") from error


def check_target(dest: Path) -> None:
    """Refuse a name at which something else lies than a prepared folder.

    Raises:
        OutputError: says what is there.
    """
    if dest.is_dir() and not dest.is_symlink():
        if any(dest.iterdir()) and read_prepared(dest) is None:
            raise OutputError(
                f"{dest}: holds something other than a prepared video, and is left alone; give"
                " another --out or --name"
            )
    elif dest.is_symlink() or dest.exists():
        raise OutputError(f"{dest}: exists and is not a folder; give another --out or --name")


def _prepare(request: Request, on_progress: OnProgress) -> Result:
    path = Path(request.video)
    with Video(path) as video:
        files = None if request.landmarks is None else LandmarkFiles(Path(request.landmarks))
        detector: Detector
        if files is not None:
            check_points(files.point_count, None, str(request.landmarks))
            detector = files
        else:
            detector = open_detector(request.detector, request.detector_options)
        digest = _hash(path, on_progress)
        part_key = request.part_key(
            digest, "" if files is None else files.fingerprint(), _version(detector)
        )
        key = request.key(part_key, _parsing_hash(request.parsing))
        if (ready := _ready(request, key)) is not None:
            if request.work.is_dir():  # killed just before it was removed
                with WorkFolder(request.work) as work:
                    work.remove()
            return ready
        with WorkFolder(request.work) as work:
            state = work.begin(part_key, key)
            try:
                last = _look(request, video, detector, work, on_progress)
            except BaseException:
                if work.done() == (0, False):
                    work.remove()
                raise
            source = Source(
                name=path.name,
                size=path.stat().st_size,
                sha256=digest,
                width=last.size[0],
                height=last.size[1],
                rate=round(float(video.rate), 4),
                codec=video.codec,
                rotation=last.rotation,
                start=request.start_s,
            )
            corners = getattr(detector, "corners", None)
            result = assemble(request, work, state, source, corners, on_progress)
            install(work.made, request.dest)
            work.remove()
            return result


def _ready(request: Request, key: str) -> Result | None:
    """What lies there, if it is what is asked for.

    Raises:
        OutputError: it is something else, and may not be replaced.
    """
    there = read_prepared(request.dest)
    if there is None:
        return None
    if there.key == key:
        try:
            with PreparedAvatar.open(request.dest) as prepared:
                report = bytes(prepared.member(REPORT))
            result: Result = json_value(report, Result)
            return msgspec.structs.replace(
                result, path=str(request.dest), video=request.video, again=True
            )
        except (AvatarError, msgspec.DecodeError, UnicodeError) as error:
            if not request.force:
                raise OutputError(f"{error}; --force prepares it again") from None
            return None
    if not request.force:
        raise OutputError(
            f"{request.dest}: was prepared from another video or with other options; --force"
            " replaces it"
        )
    more = {path.name for path in request.dest.iterdir()} - {NAME, *there.files}
    if more:  # what was trained from it, say
        raise OutputError(
            f"{request.dest}: also holds {', '.join(sorted(more))}, which would be lost; move that"
            " away, or give another --out or --name"
        )
    return None


def _look(
    request: Request, video: Video, detector: Detector, work: WorkFolder, on_progress: OnProgress
) -> Part:
    """Find landmarks in all frames that are not done, and code them; returns the last part."""
    done, whole = work.done()
    limit = round(request.longest_s * FPS)
    expected = min(limit, round(((video.seconds or 0) - request.start_s) * FPS))
    if not whole:
        looker = _Looker(request, video, detector, work)
        for picture in video.pictures(
            skip=done, start=Fraction(request.start_s).limit_denominator(1000), limit=limit
        ):
            if picture.rgb is not None:
                looker.add(picture)
                on_progress(
                    Progress("looking", picture.index + 1, max(expected, picture.index + 1))
                )
            elif not picture.index % FPS:
                on_progress(Progress("finding its place again", picture.index, done))
        looker.flush(last=True)
    return work.last()


class _Looker:
    """Gathers a part and keeps it when the next one begins (so that the last one is known)."""

    def __init__(
        self, request: Request, video: Video, detector: Detector, work: WorkFolder
    ) -> None:
        self._request, self._video, self._detector, self._work = request, video, detector, work
        self._first = work.done()[0]
        newest = work.newest()
        self._before = None if newest is None else newest.landmarks()[-1]
        self._offset = round(request.start_s * FPS)
        self._batch: list[NDArray[np.uint8]] = []
        self._points: list[NDArray[np.float32]] = []
        self._jpegs: list[bytes] = []
        self._greys: list[NDArray[np.uint8]] = []
        self._shown: NDArray[np.uint8] | None = None
        self._size = (0, 0)

    def add(self, picture: Picture) -> None:
        """Take the next frame."""
        rgb = picture.rgb
        assert rgb is not None
        if len(self._jpegs) == PART_FRAMES:
            self.flush(last=False)
        if rgb is self._shown:  # a slower video shows it again
            self._jpegs.append(self._jpegs[-1] if self._jpegs else self._coded(rgb))
        else:
            self._jpegs.append(self._coded(rgb))
        self._shown, self._size = rgb, (rgb.shape[1], rgb.shape[0])
        self._greys.append(small_grey(rgb))
        self._batch.append(rgb)
        if len(self._batch) >= max(1, min(_BATCH, _BATCH_BYTES // rgb.nbytes)):
            self._detect()

    def _coded(self, rgb: NDArray[np.uint8]) -> bytes:
        return encode_frame(rgb, self._request.jpeg)

    def _detect(self) -> None:
        if self._batch:
            first = self._offset + self._first + len(self._jpegs) - len(self._batch)
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

    def flush(self, *, last: bool) -> None:
        """Keep what is gathered."""
        self._detect()
        points = np.concatenate(self._points)
        greys = np.stack(self._greys)
        part = Part(
            first=self._first,
            last=last,
            count=len(points),
            point_count=points.shape[1],
            points=points.tobytes(),
            jpegs=self._jpegs,
            grey_size=(greys.shape[1], greys.shape[2]),
            greys=greys.tobytes(),
            begins=str(self._video.begins or 0),
            size=self._size,
            rotation=self._video.rotation,
            warnings=[*(self._video.warnings if last else ()), *self._noticed()],
        )
        self._work.add(part)
        self._first += part.count
        self._points, self._jpegs, self._greys = [], [], []

    def _noticed(self) -> list[str]:
        """What the detector has noticed so far."""
        return [str(text) for text in getattr(self._detector, "warnings", ())]


def small_grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A grey copy of at most 128 pixels a side, each the mean of a square."""
    grey = Image.fromarray(rgb).convert("L")
    return np.asarray(grey.reduce(max(1, -(-max(grey.size) // GREY_SIDE))))


def _version(detector: Detector) -> str:
    return str(getattr(detector, "version", ""))


def _hash(path: Path, on_progress: OnProgress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with io.FileIO(path) as file:
        while chunk := file.read(8 << 20):
            digest.update(chunk)
            done += len(chunk)
            on_progress(Progress("reading", done >> 20, total >> 20))
    return digest.hexdigest()


def _parsing_hash(folder: str | None) -> str:
    """Names, sizes and times of the parsing maps: their pixels are as many as the video's."""
    if folder is None:
        return ""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).glob("*.png")):
        about = file.stat()
        digest.update(f"{file.name}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
    return digest.hexdigest()
