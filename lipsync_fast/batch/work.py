# SPDX-License-Identifier: Apache-2.0
"""The work on one recording after the other, with avatars that stay open; the same everywhere.

A recording is looked at first: where its video is there, made of the same sound and avatar, nothing
is to be done. So whoever does the work decides what is finished, by what lies there, and a run
needs no memory of its own.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import traceback
from collections import OrderedDict
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from lipsync_fast.batch.made import Made, add_box
from lipsync_fast.batch.outputs import folder_of, open_outputs
from lipsync_fast.batch.sources import Recorded
from lipsync_fast.batch.tasks import Checked, Outcome, Recording, Settings
from lipsync_fast.closing import Closing
from lipsync_fast.errors import (
    BackendError,
    DeviceLostError,
    LipsyncError,
    MediaError,
    ObjectError,
    OutputError,
    spent,
)
from lipsync_fast.version import __version__

if TYPE_CHECKING:
    from lipsync_fast.api import Avatar

OPEN_AVATARS = 2
"""Avatars that a worker keeps open; each has some hundred megabytes."""
STUCK_S = 300.0
"""Without a frame, or a piece of a file, for so long, a worker ends itself: another one tries."""
STUCK_STATUS = 70
_LASTING = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOENT
"""Why the next output cannot be written to a folder either: it is full, closed, or has gone."""
_PASSING = errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EREMOTEIO, errno.EBUSY
"""What file systems of other machines say in bad moments."""


class Worker(Closing):
    """Makes recordings, one at a time."""

    def __init__(self, settings: Settings) -> None:
        """Be ready; no avatar is opened yet.

        Raises:
            ObjectError: the outputs' URL cannot be used.
        """
        self._settings = settings
        self._outputs = open_outputs(settings.out, settings.run)
        self._is_folder = folder_of(settings.out) is not None
        self._open: OrderedDict[str, Avatar] = OrderedDict()
        self._contents: dict[str, str] = {}
        self._watch = _Watch()

    def do(self, recording: Recording) -> Outcome:
        """Make a recording's video, unless it is there; raises nothing that is the recording's.

        Raises:
            DeviceLostError: only a new process can go on.
        """
        begun = time.monotonic()
        with self._watch:
            try:
                done = self._do(recording)
            except DeviceLostError:
                raise
            except (LipsyncError, OSError, MemoryError, RuntimeError) as error:
                done = _failure(recording, error, self._is_folder)
            except Exception as error:  # a defect; the others are not to suffer
                traceback.print_exc(file=sys.stderr)
                reason = f"{type(error).__name__}: {error}"
                done = Outcome(line=recording.line, state="failed", error=reason)
        return msgspec.structs.replace(done, took_s=time.monotonic() - begun)

    def close(self) -> None:
        """Close all avatars."""
        while self._open:
            self._open.popitem()[1].close()

    def _do(self, recording: Recording) -> Outcome:
        recorded = Recorded(recording.audio)
        avatar = self._content(recording.avatar)
        made = self._there(recording.out)
        force = self._settings.force
        if (
            made
            and not force
            and recorded.looks_like(made.source)
            and made.is_made_of(made.source, avatar, recording.start_frame)
        ):
            return Outcome(line=recording.line, state="kept", frames=made.frames)
        with self._outputs.scratch() as folder:
            path = recorded.here(folder, self._watch.alive)
            source = recorded.source(path, self._watch.alive)
            if made and not force and made.is_made_of(source, avatar, recording.start_frame):
                return Outcome(line=recording.line, state="kept", frames=made.frames)
            video = folder / "video.mp4"
            try:
                frames, warnings = self._render(recording, path, video)
            except MediaError as error:
                error.args = (recorded.renamed(str(error), path),)
                raise
            except OutputError as error:
                error.args = (str(error).replace(str(video), recording.out),)
                raise
            new = Made(
                source=source,
                avatar=self._content(recording.avatar),
                start_frame=recording.start_frame,
                frames=frames,
                software=__version__,
            )
            add_box(video, new)
            self._publish(video, recording.out, new, replace=force or made is not None)
            return Outcome(
                line=recording.line, state="made", frames=frames, warnings=tuple(warnings)
            )

    def _there(self, out: str) -> Made | None:
        """What was made under a name before, by a batch.

        Raises:
            OutputError: something else lies there, and is kept.
        """
        try:
            made = self._outputs.made(out)
        except FileNotFoundError:
            return None
        if made is None and not self._settings.force:
            raise OutputError(f"{out} exists, and no batch has made it; use --force to replace it")
        return made

    def _publish(self, video: Path, out: str, made: Made, *, replace: bool) -> None:
        try:
            self._outputs.publish(video, out, replace)
        except OutputError:
            # A machine that was taken for dead may have made it: twice is once.
            there = self._there(out)
            if there is None or not there.is_made_of(made.source, made.avatar, made.start_frame):
                raise

    def _render(self, recording: Recording, path: Path, video: Path) -> tuple[int, list[str]]:
        """Make a video; how many frames it has, and what was mended in the sound."""
        from lipsync_fast.output.mp4 import Mp4Writer
        from lipsync_fast.provenance import xmp_packet

        avatar = self._avatar(recording.avatar)
        frames = 0
        with ExitStack() as stack:
            rendering = stack.enter_context(
                closing(avatar.render(path, start_frame=recording.start_frame))
            )
            packet = xmp_packet(avatar.manifest.synthetic)
            writer = stack.enter_context(Mp4Writer(video, path, packet))
            for frame in rendering:
                writer.write(frame)
                frames += 1
                self._watch.alive()
            writer.commit()
            return frames, [*rendering.warnings, *writer.warnings]

    def _avatar(self, name: str) -> Avatar:
        from lipsync_fast.api import open as open_avatar
        from lipsync_fast.utterances.keys import content_of

        if name not in self._open:
            while len(self._open) >= OPEN_AVATARS:
                self._open.popitem(last=False)[1].close()
            s = self._settings
            self._open[name] = open_avatar(
                name, backend=s.backend, avatars=s.avatars, threads=s.threads
            )
            # What is open now is what is shown, whatever was found under the name before.
            self._contents[name] = content_of(self._open[name].package).hex()
        self._open.move_to_end(name)
        return self._open[name]

    def _content(self, name: str) -> str:
        """The digest of an avatar's content."""
        if name not in self._contents:
            self._contents[name] = avatar_content(name, self._settings.avatars)
        return self._contents[name]


def avatar_content(name: str, avatars: tuple[str, ...]) -> str:
    """The digest of an avatar's content, as hex.

    Raises:
        AvatarError: there is no such avatar, or it cannot be used.
    """
    from lipsync_fast.avatars.library import AvatarLibrary
    from lipsync_fast.avatars.package import AvatarPackage
    from lipsync_fast.utterances.keys import content_of

    with AvatarPackage.open(AvatarLibrary(avatars).find(name)) as package:
        return content_of(package).hex()


def check(settings: Settings, avatars: list[str]) -> Checked:
    """See that this machine can do the work: it finds all avatars, and reaches the outputs."""
    try:
        for name in avatars:
            avatar_content(name, settings.avatars)
        with open_outputs(settings.out, settings.run).scratch():
            pass
    except LipsyncError as error:
        return Checked(version=__version__, error=str(error))
    return Checked(version=__version__)


def _failure(recording: Recording, error: Exception, is_folder: bool) -> Outcome:
    """What an error means for this recording, and for the others.

    Args:
        is_folder: outputs go to a folder; else what is full is a scratch folder, for a while.
    """
    number, lacks = _errno_of(error), spent(error)
    passes = number in _PASSING or lacks is not None
    stops = False
    if isinstance(error, ObjectError):
        passes = error.passes
    elif isinstance(error, BackendError):
        passes, stops = False, True
    elif isinstance(error, OutputError):
        full = number in _LASTING
        passes, stops = passes or (full and not is_folder), full and is_folder
    reason = str(error) if isinstance(error, LipsyncError) or not lacks else lacks
    return Outcome(line=recording.line, state="failed", error=reason, passes=passes, stops=stops)


def _errno_of(error: BaseException | None) -> int | None:
    """The system's number of what was behind an error, where there was one."""
    while error is not None:
        number = getattr(error, "errno", None)
        if isinstance(number, int) and number > 0:
            return number
        error = error.__cause__ or error.__context__
    return None


@dataclass
class _Watch:
    """Ends this process where work stands still: nothing else can end a library that hangs."""

    _until: float = 0.0

    def __post_init__(self) -> None:
        threading.Thread(target=self._look, name="lipsync-watch", daemon=True).start()

    def __enter__(self) -> None:
        self.alive()

    def __exit__(self, *_: object) -> None:
        self._until = 0.0

    def alive(self) -> None:
        """Something has been done."""
        self._until = time.monotonic() + STUCK_S

    def _look(self) -> None:
        while True:
            time.sleep(min(5.0, STUCK_S / 4))
            until = self._until
            if until and time.monotonic() > until:
                os._exit(STUCK_STATUS)
