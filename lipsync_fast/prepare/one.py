# SPDX-License-Identifier: Apache-2.0
"""Prepare one video: look at its frames once, then put the folder together.

The first stage (look.py) is long and kept in parts (parts.py); the second takes seconds, and begins
again when it is interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import msgspec

from lipsync_fast.errors import AvatarError, OutputError, PrepareError
from lipsync_fast.media.video import Video
from lipsync_fast.names import json_value
from lipsync_fast.output.base import output_error
from lipsync_fast.prepare.assemble import REPORT, Clip, assemble, install
from lipsync_fast.prepare.detectors import Detector, check_points, open_detector
from lipsync_fast.prepare.folder import NAME, PreparedAvatar, Source, read_prepared
from lipsync_fast.prepare.landmark_files import LandmarkFiles
from lipsync_fast.prepare.look import OnProgress, look
from lipsync_fast.prepare.parts import Part, WorkFolder
from lipsync_fast.prepare.request import Progress, Request, Result


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
    with Video(path) as video, _idle_video(request) as idle:
        files = None if request.landmarks is None else LandmarkFiles(Path(request.landmarks))
        detector: Detector
        if files is not None:
            check_points(files.point_count, None, str(request.landmarks))
            detector = files
        else:
            detector = open_detector(request.detector, request.detector_options)
        digest = _hash(path, on_progress)
        part_key, idle_key = (
            request.part_key(held, "" if files is None else files.fingerprint(), _version(detector))
            for held in (digest, "" if idle is None else _hash(idle.path, on_progress))
        )
        key = request.key(
            part_key, _parsing_hash(request.parsing), "" if idle is None else idle_key
        )
        if (ready := _ready(request, key)) is not None:
            if request.work.is_dir():  # killed just before it was removed
                with WorkFolder(request.work) as work:
                    work.remove()
            return ready
        with WorkFolder(request.work) as work:
            state = work.begin(part_key, key)
            try:
                last = look(request, video, detector, work, on_progress)
            except BaseException:
                if work.done() == (0, False):
                    work.remove()
                raise
            corners = getattr(detector, "corners", None)
            clips = [Clip(path, request.start_s, work, corners)]
            with contextlib.ExitStack() as stack:
                if idle is not None:
                    silent = stack.enter_context(WorkFolder(work.path / "idle"))
                    silent.begin(idle_key, key)
                    look(request.of_idle(), idle, detector, silent, on_progress)
                    clips.append(Clip(idle.path, 0.0, silent, corners))
                source = _source(request, video, digest, last)
                result = assemble(request, clips, work.made, state, source, on_progress)
            install(work.made, request.dest)
            work.remove()
            return result


def _source(request: Request, video: Video, digest: str, last: Part) -> Source:
    return Source(
        name=video.path.name,
        size=video.path.stat().st_size,
        sha256=digest,
        width=last.size[0],
        height=last.size[1],
        rate=round(float(video.rate), 4),
        codec=video.codec,
        rotation=last.rotation,
        start=request.start_s,
    )


@contextlib.contextmanager
def _idle_video(request: Request) -> Iterator[Video | None]:
    """The clip to idle on, open, where there is one; it must fit before anything is looked at.

    Raises:
        PrepareError: its pictures are of another size than the video's.
    """
    if request.idle is None:
        yield None
        return
    sizes = [_size_of(Path(path)) for path in (request.video, request.idle)]
    if sizes[0] != sizes[1]:
        (w, h), (idle_w, idle_h) = sizes
        raise PrepareError(
            f"{request.idle}: its pictures are {idle_w} x {idle_h}, those of {request.video}"
            f" {w} x {h}; an idle clip is filmed like the video: the same size, place and distance"
            " (any number of frames a second will do)"
        )
    with Video(Path(request.idle)) as idle:
        yield idle


def _size_of(path: Path) -> tuple[int, int]:
    """Of a video's pictures as they are shown."""
    with Video(path) as video:
        shown = next(iter(video.pictures(limit=1))).rgb
    assert shown is not None
    return shown.shape[1], shown.shape[0]


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
