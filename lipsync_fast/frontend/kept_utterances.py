# SPDX-License-Identifier: Apache-2.0
"""What a front knows of what was said before: asked once when an utterance begins.

One look into the store, some 0.6 ms, without waiting for anybody: what cannot be read now counts as
not there. What a frame is known by is all that it depends on, so nothing here is a guess: an
utterance that begins like a kept one and goes on otherwise has frames that are not found, and they
are made.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from lipsync_fast.arrays import F32
from lipsync_fast.audio.windows import block_starts
from lipsync_fast.avatars.manifest import Manifest
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.config import Utterances
from lipsync_fast.errors import StoreDamagedError, StoreError
from lipsync_fast.frontend.playout.playout import Appearance
from lipsync_fast.frontend.playout.utterance_lookup import Beginning, Move
from lipsync_fast.ipc.messages import Look, Speech, StoreMode
from lipsync_fast.utterances.keys import (
    content_of,
    scope_of,
    sound_of,
)
from lipsync_fast.utterances.likeness import Likeness, loop_positions_of, thumbnails
from lipsync_fast.utterances.opening import StoreReader
from lipsync_fast.utterances.store import Store
from lipsync_fast.utterances.transitions import blended

MOST_POSITIONS = 32
"""Positions of the loop over which one utterance is kept."""
LOOK_S = 5.0
"""Between looks at whether there is anything in the store."""
MOST_AVATARS = 64


class KeptUtterances:
    """What was said before, for all sessions of a front; see ``UtteranceLookup``.

    Args:
        config: see ``config.Utterances``.
        maker: of the engines that work now; empty while none does.
    """

    def __init__(self, config: Utterances, maker: Callable[[], str]) -> None:
        self._config, self._maker = config, maker
        self.enabled = config.disk_mb > 0
        self.counts = dict.fromkeys(("hits", "misses", "at_once", "named"), 0)
        """Utterances: whose beginning was there, or was not; begun at once; said by name."""
        self._reader = StoreReader(config)
        self._checked_until = 0.0
        self._filled = False
        self._packages: dict[str, tuple[weakref.ref[AvatarPackage], bytes]] = {}
        self._scopes: dict[tuple[bytes, str, Look], bytes] = {}
        self._likeness: dict[bytes, Likeness] = {}
        self._comparisons: dict[bytes, Future[Likeness]] = {}
        self._stop = threading.Event()
        self._aside = ThreadPoolExecutor(1, "lipsync-likeness")

    # ------------------------------------------------------------ avatars
    def register(self, key: str, package: AvatarPackage) -> None:
        """A session uses a version of an avatar."""
        known = self._packages.get(key)
        if known is None or known[0]() is not package:
            gone = [k for k, (package_, _) in self._packages.items() if package_() is None]
            for each in gone:
                del self._packages[each]
            self._packages[key] = weakref.ref(package), content_of(package)
        if self.filled:
            self._likeness_of(package.manifest, *self._packages[key])

    def _likeness_of(
        self, manifest: Manifest, ref: weakref.ref[AvatarPackage], content: bytes
    ) -> Likeness:
        """Which positions are alike; only those near to each other until all pictures were seen."""
        future, package = self._comparisons.get(content), ref()
        if package is None:
            return Likeness(manifest)
        if future is None:
            while len(self._comparisons) >= MOST_AVATARS:
                gone = next(iter(self._comparisons))
                self._comparisons.pop(gone).cancel()
                self._likeness.pop(gone, None)

            def compare() -> Likeness:
                return Likeness(package.manifest, thumbnails(package, self._stop))

            self._likeness[content] = Likeness(package.manifest)
            future = self._comparisons[content] = self._aside.submit(compare)
        if future.done() and not future.cancelled() and future.exception() is None:
            self._likeness[content] = future.result()
        return self._likeness[content]

    def _scope(self, content: bytes, manifest: Manifest, look: Look) -> bytes | None:
        maker = self._maker()
        if not maker:
            return None
        found = self._scopes.get((content, maker, look))
        if found is None:
            if len(self._scopes) >= 16 * MOST_AVATARS:
                self._scopes.clear()
            found = self._scopes[content, maker, look] = scope_of(content, maker, manifest, look)
        return found

    # ------------------------------------------------------------ the store
    def _failed(self, error: StoreError) -> None:
        damaged = self._reader.hand_over() if isinstance(error, StoreDamagedError) else None
        if damaged is not None:
            self._reader.suspend()
            self._aside.submit(_mend, damaged)

    @property
    def filled(self) -> bool:
        """Whether anything is kept; looked at now and then."""
        now = time.monotonic()
        if self.enabled and now >= self._checked_until:
            self._checked_until = now + LOOK_S
            if self._reader.replaced:
                self._reader.close()
            store = self._reader.store()
            try:
                self._filled = store is not None and not store.empty
            except StoreError as error:
                self._filled = False
                self._failed(error)
        return self._filled

    def named(self, avatar: str, name: str) -> F32 | None:
        """The sound of an utterance that was pre-rendered, 16 kHz mono; None where there is none.

        Args:
            avatar: the name in its manifest.
        """
        store = self._reader.store() if self.enabled else None
        try:
            pcm = None if store is None else store.named(avatar, name)
        except StoreError as error:
            self._failed(error)
            return None
        return None if pcm is None else np.frombuffer(pcm, np.float32)

    # ------------------------------------------------------------ utterances
    @property
    def lead_in(self) -> StoreMode:
        """``Speech.store`` for frames that are shown before a sound is known."""
        return StoreMode.LOOK_UP if self.filled else StoreMode.OFF

    def look_up(
        self,
        appearance: Appearance,
        seen: Sequence[tuple[Speech, F32]],
        loop_position: int,
        move: Move,
        at_once: bool,
        leads: bool = True,
    ) -> Beginning:
        """See ``UtteranceLookup``."""
        manifest = appearance.manifest
        ref, content = self._packages[appearance.avatar]
        scope = self._scope(content, manifest, appearance.look)
        store = self._reader.store() if scope is not None else None
        if store is None or scope is None:
            return Beginning(StoreMode.OFF, loop_position)
        sounds = [_sound(scope, manifest, speech, pcm) for speech, pcm in seen]
        try:
            there = store.avatar_frames(sounds)
        except StoreError as error:
            self._failed(error)
            return Beginning(StoreMode.OFF, loop_position)
        frames = [there[sound] for sound in sounds]
        shares = [blended(k) if at_once and leads else 1.0 for k in range(len(frames))]
        possible = _positions(manifest, frames[0], shares[0])
        whole = [p for p in possible if _all(manifest, p, frames, shares)]
        likeness = self._likeness_of(manifest, ref, content)
        due = loop_position % likeness.period
        found: int | None = due if due in whole else None
        if found is None and whole and move != "never":
            found = likeness.nearest(due, whole)
            if found is None and move == "anywhere":
                found = whole[0]
        if found is not None:
            self.counts["hits"] += 1
            self.counts["at_once"] += at_once
            return Beginning(StoreMode.LOOK_UP, loop_position + found - due, at_once)
        if at_once:
            return Beginning(StoreMode.OFF, loop_position)
        self.counts["misses"] += 1
        if (manifest.avatar_frame(loop_position), 1.0) in frames[0]:
            return Beginning(StoreMode.LOOK_UP, loop_position)  # some of it is there
        there_with = {avatar_frame for avatar_frame, share in frames[0] if share == 1.0}
        keep = self._config.keep and len(there_with) < MOST_POSITIONS
        return Beginning(StoreMode.KEEP if keep else StoreMode.OFF, loop_position)

    def close(self) -> None:
        """Stop looking at pictures, and close the store."""
        self._stop.set()
        self._aside.shutdown(wait=True, cancel_futures=True)
        self._reader.close()


def _mend(store: Store) -> None:
    """Put a damaged file aside, and begin it anew (in a thread)."""
    with contextlib.suppress(StoreError):  # who opens it next meets the same error
        store.mended().close()


def _sound(scope: bytes, manifest: Manifest, speech: Speech, pcm: F32) -> bytes:
    starts = block_starts(speech.frame, manifest.audio, speech.samples)
    return sound_of(scope, starts, speech.first, pcm)


def _positions(manifest: Manifest, there: set[tuple[int, float]], share: float) -> list[int]:
    """Positions of the loop over which a frame is kept with a share."""
    below = sorted(a for a, s in there if s == share and a < manifest.frame_count)
    return [position for frame in below for position in loop_positions_of(manifest, frame)]


def _all(
    manifest: Manifest, position: int, frames: list[set[tuple[int, float]]], shares: list[float]
) -> bool:
    """Whether all frames are there from a position of the loop on."""
    return all(
        (manifest.avatar_frame(position + k), share) in there
        for k, (there, share) in enumerate(zip(frames, shares, strict=True))
    )
