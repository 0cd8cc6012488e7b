# SPDX-License-Identifier: Apache-2.0
"""Frames that an engine finds among those that were kept, and those that it has kept.

A kept frame of a whole picture is what of it changes, coded: the restart segments that ``splice``
puts into the frame that was encoded once. So a frame that is found has the bytes of one that is
made, and costs a hash, a look into the store, and the splice.
"""

from __future__ import annotations

import struct
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lipsync_fast.avatars.jpeg import segment_offsets
from lipsync_fast.config import Utterances
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.base import Backend, Coded
from lipsync_fast.engine.changes import Place
from lipsync_fast.engine.job_queue import QueuedJob
from lipsync_fast.engine.picture_jobs import Made, SpokenPicture, variant_of
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.errors import AvatarError, StoreDamagedError, StoreError
from lipsync_fast.geometry import Rect
from lipsync_fast.ipc.messages import Content, Job, Look
from lipsync_fast.utterances.keys import content_of, maker_of, scope_of, sound_of
from lipsync_fast.utterances.opening import StoreReader
from lipsync_fast.utterances.store import Kept, Row, Store, store_folder
from lipsync_fast.utterances.write_behind import Task, WriteBehind

_COUNT = struct.Struct("<I")


class Scopes:
    """What the frames of an avatar in a look are known by (``keys.scope_of``)."""

    def __init__(self, maker: str) -> None:
        self._maker = maker

    def of(self, avatar: RegisteredAvatar, look: Look) -> bytes:
        """The scope of an avatar's frames in a look."""
        found = avatar.scopes.get(look)
        if found is None:
            avatar.content = avatar.content or content_of(avatar.package)
            found = scope_of(avatar.content, self._maker, avatar.package.manifest, look)
            avatar.scopes[look] = found
        return found

    def sound(self, avatar: RegisteredAvatar, look: Look, spoken: SpokenPicture) -> bytes:
        """What a frame sees of its sound, hashed.

        Raises:
            ValueError: the frame's number cannot be.
        """
        starts = avatar.window_starts(spoken.speech)
        return sound_of(self.of(avatar, look), starts, spoken.speech.first, spoken.pcm)


class FrameCache:
    """The frames that are kept, for one engine. All methods: its one thread.

    Args:
        backend: who makes what is not there.
        encoder: of the engine.
        config: see ``config.Utterances``.
    """

    def __init__(self, backend: Backend, encoder: FrameEncoder, config: Utterances) -> None:
        self._encoder = encoder
        self._scopes = Scopes(maker_of(backend))
        self.write_behind = WriteBehind(
            store_folder(config.folder), config.disk_mb * 1_000_000, config.write_mb_s * 1e6
        )
        self._reader = StoreReader(config)
        self._renewed = 0
        self._found = self._missed = 0
        self._aside = ThreadPoolExecutor(1, "lipsync-cached")

    @property
    def counts(self) -> dict[str, int]:
        """Frames that were ``found`` and ``missed``, and what ``WriteBehind`` counts."""
        return {"found": self._found, "missed": self._missed, **self.write_behind.counts}

    def find(
        self, avatar: RegisteredAvatar, job: Job, spoken: SpokenPicture
    ) -> Future[Made] | None:
        """A frame that is kept, as its picture; None where it is to be made.

        Where the picture around it was not encoded before, that is done in a thread. An avatar that
        cannot be read has none: whoever makes the frame says why.
        """
        try:
            return self._found_frame(avatar, job, spoken)
        except AvatarError:
            self._missed += 1
            return None

    def _found_frame(
        self, avatar: RegisteredAvatar, job: Job, spoken: SpokenPicture
    ) -> Future[Made] | None:
        kept = self._kept(avatar, job, spoken)
        if kept is None:
            self._missed += 1
            return None
        self._found += 1
        self.write_behind.used(kept.id, kept.used)
        package, variant = avatar.package, variant_of(job.look, avatar.package)
        if job.look.content != Content.FRAME:
            return _done((kept.value, package.rect(job.avatar_frame)))

        def put_in() -> Made:
            jpeg = self._encoder.frame(package, job.avatar_frame, variant, unpacked(kept.value))
            return jpeg, Rect.of_size(package.frame_size)

        if self._encoder.has(package, job.avatar_frame, variant):
            return _done(put_in())
        return self._aside.submit(put_in)

    def _kept(self, avatar: RegisteredAvatar, job: Job, spoken: SpokenPicture) -> Kept | None:
        store = self._ready()
        if store is None:
            return None
        try:
            sound = self._scopes.sound(avatar, job.look, spoken)
            kept = store.find(sound, job.avatar_frame, spoken.speech.share)
            if store.bad:
                self.write_behind.bad(store.bad)
                store.bad = []
        except StoreDamagedError:
            self.write_behind.damaged()
            self._reader.suspend()
            return None
        except (StoreError, ValueError):
            return None
        if kept is not None and job.look.content == Content.FRAME:
            place = self._encoder.place(
                avatar.package, job.avatar_frame, variant_of(job.look, avatar.package)
            )
            if not fits(kept.value, place):
                self.write_behind.bad([kept.id])
                return None
        return kept

    def _ready(self) -> Store | None:
        """The store, or None while it cannot be had."""
        if self._renewed != self.write_behind.renewed and self._reader.is_open:
            self._renewed = self.write_behind.renewed
            self._reader.reopen()
        return self._reader.store()

    def keep(self, entry: QueuedJob, spoken: SpokenPicture, jpeg: bytes) -> None:
        """Keep a frame that was made, with its whole picture's JPEG, if its avatar can be read."""
        avatar, job = entry.avatar, entry.job
        package, picture, share = avatar.package, job.avatar_frame, spoken.speech.share
        place = None
        if job.look.content == Content.FRAME:
            try:
                place = self._encoder.place(package, picture, variant_of(job.look, package))
            except AvatarError:
                return

        def row() -> Row:
            sound = self._scopes.sound(avatar, job.look, spoken)
            return Row(sound, picture, share, jpeg if place is None else packed(jpeg, place))

        stream = entry.front.name, spoken.speech.stream
        self.write_behind.keep(Task(stream, len(jpeg), row))

    def close(self) -> None:
        """Write what waits, and close."""
        self._aside.shutdown(wait=True, cancel_futures=True)
        self.write_behind.close()
        self._reader.close()


def _done(made: Made) -> Future[Made]:
    future: Future[Made] = Future()
    future.set_result(made)
    return future


# ---------------------------------------------------------------- values
def packed(jpeg: bytes, place: Place) -> bytes:
    """What of a whole picture's JPEG changes: the segments of ``place.cut``, with their offsets."""
    if place.cut is None:
        return _COUNT.pack(0)
    offsets, where, view = segment_offsets(jpeg), place.cut, memoryview(jpeg)
    pieces, ends = [], [0]
    for first in where.firsts:
        for number in range(first, first + where.run):
            # Each but the frame's last one is followed by a marker, which ``splice`` puts again.
            end = int(offsets[number + 1]) - (2 if number < where.count - 1 else 0)
            piece = view[int(offsets[number]) : end]
            pieces.append(piece)
            ends.append(ends[-1] + len(piece))
    return _COUNT.pack(len(pieces)) + np.array(ends, "<u4").tobytes() + b"".join(pieces)


def unpacked(value: bytes) -> Coded:
    """The segments again."""
    (count,) = _COUNT.unpack_from(value)
    end = _COUNT.size + 4 * (count + 1 if count else 0)
    offsets = np.frombuffer(value, "<u4", (end - _COUNT.size) // 4, _COUNT.size)
    return Coded(memoryview(value)[end:], offsets.tolist())


def fits(value: bytes, place: Place) -> bool:
    """Whether a value has the segments of a place."""
    if len(value) < _COUNT.size:
        return False
    (count,) = _COUNT.unpack_from(value)
    wanted = 0 if place.cut is None else place.cut.run * len(place.cut.firsts)
    if count != wanted or len(value) < _COUNT.size + 4 * (count + 1 if count else 0):
        return False
    coded = unpacked(value)
    return not count or coded.offsets[-1] == len(coded.data)


def open_frame_cache(
    backend: Backend, encoder: FrameEncoder, config: Utterances
) -> FrameCache | None:
    """An engine's kept frames; None where nothing is to be kept.

    Raises:
        StoreError: there is no place for them.
    """
    return FrameCache(backend, encoder, config) if config.disk_mb else None
