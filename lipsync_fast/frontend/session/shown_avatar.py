# SPDX-License-Identifier: Apache-2.0
"""The avatar of one session, and how its pictures look: at its start, and after each change."""

from __future__ import annotations

import math

from msgspec import UNSET

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.errors import UnsupportedVideoError
from lipsync_fast.frontend.avatars.leases import AvatarLease
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.frontend.kept_utterances import KeptUtterances
from lipsync_fast.frontend.playout.playout import Appearance
from lipsync_fast.frontend.services import Services
from lipsync_fast.geometry import even_size
from lipsync_fast.ipc.messages import Coding, Content, Look, crf_of, scaled_size
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet
from lipsync_fast.timing import FPS
from lipsync_fast.tokens.accounts import Visit
from lipsync_fast_client.protocol import SessionStarted, SessionUpdate, VideoFormat


def check_codec(pool: EnginePool, video: VideoFormat) -> None:
    """See that pictures can be made as a client wants them.

    Raises:
        UnsupportedVideoError: they cannot.
    """
    if video.codec == "h264" and pool.encoding == math.inf:
        raise UnsupportedVideoError("this server has no encoder of H.264; ask for codec jpeg")


class ShownAvatar:
    """What a client has asked to see last.

    What is being spoken goes on as it was, so versions of avatars are used until no more pictures
    are made of them: each lease is released once, at the latest by ``close``.

    Attributes:
        name: of the avatar.
        package: of its newest version.
        mouth: the client wants the face rectangle alone.
        size: width and height of the whole pictures.
        own_ready: the package's own pictures are as the client wants them.
        look: how pictures are encoded.
        coding: of a stream of H.264; None where each picture is one by itself.
    """

    def __init__(
        self, services: Services, lease: AvatarLease, video: VideoFormat, visit: Visit
    ) -> None:
        self._visit = visit
        self._directory, self._pool = services.avatars, services.pool
        self._text = services.text_to_speech.enabled
        self._utterances: KeptUtterances = services.utterances
        self._leases = [lease]
        """The newest last, those before it until the change."""
        self._show(lease, video)

    def _show(self, lease: AvatarLease, video: VideoFormat) -> None:
        package = lease.package
        self.name: str = lease.name
        self._visit.avatars[lease.name] = None
        self.package: AvatarPackage = package
        self._video = video
        m = package.manifest
        if self._utterances.enabled:
            self._utterances.register(lease.key, package)
        self._xmp = xmp_packet(m.synthetic)
        self.mouth = video.content == "mouth"
        self.size = package.frame_size
        if not self.mouth:
            self.size = scaled_size(package.frame_size, video.max_width)
        as_it_is = self.size == package.frame_size
        self.own_ready = not self.mouth and as_it_is and video.quality in (None, m.jpeg.quality)
        max_width = None if self.mouth or as_it_is else video.max_width
        self.look = Look(Content.MOUTH if self.mouth else Content.FRAME, video.quality, max_width)
        self.coding: Coding | None = None
        if video.codec == "h264":
            self.look = Look(Content.PIXELS, None, max_width)
            self.coding = Coding(crf_of(video.quality), video.bitrate, max_width)
            self.own_ready = True  # encoders have them
            self.size = even_size(self.size)

    @property
    def encoding(self) -> float:
        """What encoding the pictures costs while something is said, in speakers."""
        if self.coding is None:
            return 0.0
        cost = self._pool.encoding
        return 0.0 if cost == math.inf else cost

    @property
    def appearance(self) -> Appearance:
        """For the playout."""
        return Appearance(self.package.manifest, self._leases[-1].key, self.look, self.coding)

    async def update(self, message: SessionUpdate) -> None:
        """Another avatar or form of pictures, as far as the message names one.

        Raises:
            LipsyncError: the avatar cannot be used; all is as it was.
        """
        lease, video = self._leases[-1], message.video or self._video
        check_codec(self._pool, video)
        if message.avatar is not None:
            new = await self._directory.lease(message.avatar, self._visit.subject)
            if new.key == lease.key:
                new.release()
            else:
                lease = new
                self._leases.append(new)
        self._show(lease, video)

    def release_left(self, avatar: str) -> None:
        """Let go of versions that no more pictures are made of.

        Args:
            avatar: the key of the one that the playout shows.
        """
        if len(self._leases) == 1:
            return
        for lease in self._leases[:-1]:
            if lease.key != avatar:
                lease.release()
                self._leases.remove(lease)

    def started(self, session: int, latency_ms: float) -> SessionStarted:
        """What the client is told of it."""
        full = self.package.frame_size[0]
        scale = (self.size[0] if self.coding is None else min(self.size[0], full)) / full
        return SessionStarted(
            session=f"s{session}",
            avatar=self.name,
            width=self.size[0],
            height=self.size[1],
            fps=FPS,
            bounds=self.package.rect(0).scaled(scale),
            latency_ms=latency_ms,
            codec=UNSET if self.coding is None else "h264",
            text=self._text or UNSET,
        )

    def own_picture(self, avatar_frame: int) -> bytes | None:
        """The package's own picture, with its provenance; None where it is not as the client wants
        it, or is of the avatar before this one."""
        there = avatar_frame < self.package.manifest.frame_count
        if self.mouth or self.coding is not None or not self.own_ready or not there:
            return None
        return jpeg_with_xmp(self.package.frame_bytes(avatar_frame), self._xmp)

    def close(self) -> None:
        """Let go of all."""
        for lease in self._leases:
            lease.release()
