# SPDX-License-Identifier: Apache-2.0
"""One picture for a request of the old protocols.

A client that gets a picture goes on; one that gets errors stalls. So where no engine can make what
was asked for, the avatar's own picture is sent (made here), and that is logged and counted. What
the client itself has got wrong, such as the name of an avatar, is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio

from lipsync_fast.avatars.jpeg import encode_frame
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import (
    AvatarNotFoundError,
    EngineLostError,
    LipsyncError,
    OverloadedError,
    OverQuotaError,
)
from lipsync_fast.frontend.avatars.leases import AvatarLease
from lipsync_fast.frontend.legacy.stitch import NOTHING, SOUNDS, SoundWindow
from lipsync_fast.frontend.services import Services
from lipsync_fast.ipc.messages import Content, Look
from lipsync_fast.logs import get_logger
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.timing import FPS
from lipsync_fast.tokens.accounts import Visit
from lipsync_fast.tokens.refusals import retry_after

log = get_logger("lipsync.old_clients")
Bounds = tuple[float, float, float, float]
REGION, WHOLE = Look(Content.REGION), Look(Content.FRAME)
DEFAULT_NAMES = ("", "default_model")
FULL_BODY, FACE, MASKED = VIDEO_TYPES = ("full_body", "face_regions", "masked_regions")


@dataclass(frozen=True, slots=True)
class Region:
    """The generated square of a frame.

    Attributes:
        jpeg: the square; ``side`` pixels wide and high.
        bounds: x1, y1, x2, y2 of where it belongs in the avatar's frame.
        avatar_frame: index of that frame.
    """

    jpeg: bytes
    side: int
    bounds: Bounds
    avatar_frame: int


def region_bounds(package: AvatarPackage, avatar_frame: int) -> Bounds:
    """Where the generated square belongs in a frame: x1, y1, x2, y2, in pixels and their parts.

    The face rectangle is a crop; in some families it has a border around the square (4 of 328).
    """
    rect = package.rect(avatar_frame)
    border = package.manifest.crop_rule.border / package.manifest.crop
    across, down = rect.width * border, rect.height * border
    return rect.x + across, rect.y + down, rect.right - across, rect.bottom - down


def own_picture(package: AvatarPackage, avatar_frame: int, kind: str) -> bytes:
    """A JPEG of an avatar's own frame (slow; for a thread).

    Args:
        package: the avatar.
        avatar_frame: index of the frame.
        kind: one of VIDEO_TYPES: all of it; the square that is generated; the same with the part
            black that the networks do not see.
    """
    manifest = package.manifest
    packet = xmp_packet(manifest.synthetic)
    if kind == FULL_BODY:
        return jpeg_with_xmp(package.frame_bytes(avatar_frame), packet)
    region = manifest.crop_rule.inner(package.crop(avatar_frame))
    if kind == MASKED:
        region = manifest.crop_rule.masked(region)
    return jpeg_with_xmp(encode_frame(region, manifest.jpeg), packet)


class Pictures:
    """Pictures for one connection.

    Args:
        services: the front's.
        session: number that keeps the connection at one engine.
        visit: the connection's: each picture is 40 ms of speech.
    """

    def __init__(self, services: Services, session: int, visit: Visit) -> None:
        self._services, self._session, self._visit = services, session, visit
        self._subject = visit.subject
        self._begun: dict[str, tuple[int, AvatarLease]] = {}
        """By name: the sound that is being shown, and the version of the avatar it began with."""
        self._told = False

    def name(self, asked: str) -> str:
        """The avatar that a client means."""
        avatars = self._services.avatars
        return avatars.default_of(self._subject) if asked in DEFAULT_NAMES else asked

    async def names(self) -> list[str]:
        """Avatars that can be used, the default one first."""
        # Each is opened and looked at: not in the thread that serves all clients.
        names = self._services.avatars.names
        return await trio.to_thread.run_sync(names, self._subject)

    @asynccontextmanager
    async def using(
        self, name: str, window: SoundWindow | None = None
    ) -> AsyncIterator[AvatarLease]:
        """An avatar that an engine has loaded: the version that the sound began with, or, without
        one, the current version.

        Raises:
            LipsyncError: it cannot be used; lists those that can.
        """
        stream = 0 if window is None else window.stream
        begun = self._begun.get(name)
        holds = self._services.pool.holds
        if begun is not None and stream == begun[0] and holds(begun[1].key):
            with begun[1].using() as lease:
                yield lease
            return
        lease = await self._current(name, begun)
        self._visit.avatars[name] = None
        try:
            if stream:
                self._begin(name, stream, lease)
            yield lease
        finally:
            lease.release()

    async def _current(self, name: str, begun: tuple[int, AvatarLease] | None) -> AvatarLease:
        try:
            return await self._services.avatars.lease(name, self._subject)
        except AvatarNotFoundError:
            names = await self.names()
            if not names:
                raise LipsyncError("No models loaded in engine") from None
            listed = ", ".join(names)
            raise AvatarNotFoundError(f"Unknown model {name[:64]!r}; loaded: {listed}") from None
        except EngineLostError:
            if begun is None:
                raise
            return begun[1].copy()

    def _begin(self, name: str, stream: int, lease: AvatarLease) -> None:
        """A sound keeps the version that it begins with."""
        before = self._begun.pop(name, None)
        if before is not None:
            before[1].release()
        self._begun[name] = stream, lease.copy()
        if len(self._begun) > SOUNDS:
            self._begun.pop(next(iter(self._begun)))[1].release()

    def close(self) -> None:
        """The connection has ended."""
        for _, lease in self._begun.values():
            lease.release()
        self._begun.clear()

    async def region(
        self, name: str, frame_id: int, window: SoundWindow | None, ahead: int = 0
    ) -> Region:
        """The generated square of a frame; without sound, the avatar's own.

        Args:
            name: from ``name``.
            frame_id: any number; it goes through the avatar's frames there and back.
            window: the window of sound.
            ahead: frames behind the window's current one.

        Raises:
            LipsyncError: there is no such avatar, or too much to do.
        """
        self._spend()
        async with self.using(name, window) as lease:
            package, manifest = lease.package, lease.package.manifest
            avatar_frame = manifest.avatar_frame(frame_id)
            speech, pcm = window.speech(manifest.audio, ahead) if window else (None, NOTHING)
            make = self._services.requests.make
            try:
                jpeg = (
                    await make(lease.key, avatar_frame, REGION, speech, pcm, self._session)
                ).jpeg
            except OverloadedError:
                raise
            except LipsyncError as error:
                jpeg = await self._instead(package, avatar_frame, FACE, error)
            return Region(jpeg, manifest.region, region_bounds(package, avatar_frame), avatar_frame)

    def _spend(self) -> None:
        """A picture is asked for, which is as much as 40 ms of speech.

        Raises:
            OverQuotaError: no more of this day are left.
        """
        used_up = self._visit.used_up()
        if used_up is not None:
            self._services.statistics.count_error("over_quota")
            retry = retry_after(used_up.retry_s)
            raise OverQuotaError(f"over_quota: {used_up.message}; try again in {retry} s")
        self._visit.spend(1 / FPS)

    async def whole(self, name: str, frame_id: int) -> bytes:
        """The avatar's own frame.

        Raises:
            LipsyncError: there is no such avatar, or too much to do.
        """
        self._spend()
        async with self.using(name) as lease:
            package, make = lease.package, self._services.requests.make
            avatar_frame = package.manifest.avatar_frame(frame_id)
            try:
                made = await make(lease.key, avatar_frame, WHOLE, None, NOTHING, self._session)
            except OverloadedError:
                raise
            except LipsyncError as error:
                return await self._instead(package, avatar_frame, FULL_BODY, error)
            return made.jpeg

    async def of_kind(self, name: str, frame_id: int, kind: str) -> bytes:
        """The avatar's own picture, of one of VIDEO_TYPES.

        Raises:
            LipsyncError: there is no such avatar or kind.
        """
        if kind not in VIDEO_TYPES:
            raise LipsyncError(
                f"Unknown video type {kind[:64]!r}; there are {', '.join(VIDEO_TYPES)}"
            )
        if kind == FULL_BODY:
            return await self.whole(name, frame_id)
        async with self.using(name) as lease:
            avatar_frame = lease.package.manifest.avatar_frame(frame_id)
            return await self._own(lease.package, avatar_frame, kind)

    async def _own(self, package: AvatarPackage, avatar_frame: int, kind: str) -> bytes:
        return await trio.to_thread.run_sync(partial(own_picture, package, avatar_frame, kind))

    async def _instead(
        self, package: AvatarPackage, avatar_frame: int, kind: str, error: LipsyncError
    ) -> bytes:
        self._services.statistics.count_error("engine_lost")
        if not self._told:  # once a connection: it may be so for each request
            self._told = True
            log.warning("sent the avatar's own picture", reason=str(error))
        return await self._own(package, avatar_frame, kind)
