# SPDX-License-Identifier: Apache-2.0
"""Makes all frames of an utterance, and what is shown around it, before anybody asks for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import (
    MIN_SAMPLES,
    BlockCache,
    block_starts,
    frame_count,
    samples_seen,
)
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.engine.avatar import RegisteredAvatar
from lipsync_fast.engine.backends.base import Backend, Coded
from lipsync_fast.engine.frame_cache import Scopes, packed
from lipsync_fast.engine.picture_jobs import Pictures, SpokenPicture, variant_of
from lipsync_fast.engine.splice import FrameEncoder
from lipsync_fast.ipc.messages import Content, Job, Look, Speech
from lipsync_fast.utterances.keys import content_of, maker_of
from lipsync_fast.utterances.store import Row, Store
from lipsync_fast.utterances.transitions import shown

BATCH = 64
"""Frames that are written together."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A frame of an utterance over a picture of the avatar.

    Attributes:
        frame: of the sound; share: of the generated mouth.
    """

    frame: int
    avatar_frame: int
    share: float


def wanted(package: AvatarPackage, samples: int, loop_positions: list[int]) -> list[Wanted]:
    """All frames of an utterance that begins at some positions of the loop, each once.

    Args:
        samples: of its sound, 16 kHz.
    """
    around, index = shown(frame_count(samples)), package.manifest.avatar_frame
    every = (Wanted(f, index(p + slot), share) for p in loop_positions for slot, f, share in around)
    return list(dict.fromkeys(every))


class Prerendering:
    """Makes and keeps the frames of one utterance, in one look.

    Args:
        backend: where networks run; closed by who made it.
        package: the avatar.
        pcm: 16 kHz mono float32.
        look: how its pictures are encoded.
        store: where they are kept.

    Raises:
        AvatarError: its networks cannot be used.
    """

    def __init__(
        self, backend: Backend, package: AvatarPackage, pcm: F32, look: Look, store: Store
    ) -> None:
        self._backend, self._package, self._store, self._look = backend, package, store, look
        self._encoder = FrameEncoder()
        loaded = backend.load(package)
        blocks = BlockCache(lambda mel: backend.features(loaded, mel))
        self._avatar = RegisteredAvatar(package, loaded, blocks)
        self._pictures = Pictures(self._encoder)
        self._scopes = Scopes(maker_of(backend))
        self._samples = len(pcm)
        silence = np.zeros(max(0, MIN_SAMPLES - len(pcm)), np.float32)
        gain = package.manifest.audio.new_gain()
        heard = gain.push(pcm.astype(np.float32)), gain.finish()
        self._pcm = np.concatenate([*heard, silence])

    @property
    def content(self) -> bytes:
        """See ``keys.content_of``."""
        return content_of(self._package)

    def _spoken(self, want: Wanted) -> SpokenPicture:
        starts = block_starts(want.frame, self._package.manifest.audio, self._samples)
        first, end = samples_seen(starts)
        speech = Speech(1, want.frame, self._samples, first, want.share)
        return SpokenPicture(speech, self._pcm[first:end])

    def missing(self, wants: list[Wanted], name: int = 0) -> list[Wanted]:
        """Those that are not kept yet; others are pinned for a name where one is given.

        Raises:
            StoreError: the store cannot be used.
        """
        sounds: dict[int, bytes] = {}
        for frame in {want.frame for want in wants}:
            spoken = self._spoken(Wanted(frame, 0, 1.0))
            sounds[frame] = self._scopes.sound(self._avatar, self._look, spoken)
        out, there = [], []
        known: dict[bytes, set[tuple[int, float]]] = {}
        for group in _groups(sounds):
            known |= self._store.avatar_frames(group)
        for want in wants:
            sound = sounds[want.frame]
            if (want.avatar_frame, want.share) in known[sound]:
                there.append((sound, want.avatar_frame, want.share))
            else:
                out.append(want)
        if name and there:
            self._store.pin(name, there)
        return out

    def make(self, wants: list[Wanted]) -> Iterator[Row]:
        """Make frames, in order, as many at a time as keep the device busy."""
        flying: deque[Future[Row]] = deque()
        for want in wants:
            flying.append(self._begin(want))
            while len(flying) >= self._backend.depth:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()

    def _begin(self, want: Wanted) -> Future[Row]:
        spoken = self._spoken(want)
        audio_of = self._avatar.sound if self._backend.takes_sound else self._avatar.audio_block
        audio = audio_of("prerender", spoken.speech, spoken.pcm)
        job = Job(0, 0, 0, "x", want.avatar_frame, 0, self._look, spoken.speech)
        region, finish = self._pictures.spoken(
            self._avatar, job, want.share, audio, self._backend.encodes
        )
        sound = self._scopes.sound(self._avatar, self._look, spoken)
        package = self._package
        place = None
        if self._look.content == Content.FRAME:
            place = self._encoder.place(package, want.avatar_frame, variant_of(self._look, package))

        def done(_: int, image: NDArray[np.uint8] | Coded) -> Row:
            jpeg, _box = finish(image)
            value = jpeg if place is None else packed(jpeg, place)
            return Row(sound, want.avatar_frame, want.share, value)

        return self._backend.submit([region], done)[0]

    def run(self, wants: list[Wanted], name: int, made: Callable[[], None]) -> int:
        """Make frames, and keep them for a name; gives their bytes.

        Args:
            made: called for each.

        Raises:
            StoreError: they cannot be kept; what was written before is there.
        """
        rows, size = list[Row](), 0
        for row in self.make(wants):
            rows.append(row)
            size += row.size
            made()
            if len(rows) >= BATCH:
                self._store.add(rows, name)
                rows = []
        if rows:
            self._store.add(rows, name)
        return size


def _groups(sounds: dict[int, bytes]) -> Iterator[list[bytes]]:
    every = list(set(sounds.values()))
    for at in range(0, len(every), BATCH):
        yield every[at : at + BATCH]
