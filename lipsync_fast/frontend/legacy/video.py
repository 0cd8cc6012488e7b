# SPDX-License-Identifier: Apache-2.0
"""An avatar's frames as an MP4, for clients that draw pictures into a copy of their own.

All frames in order, from the first to the last, once: clients go there and back by themselves. Made
when it is first asked for, in a thread of low priority, one at a time. A file without a name holds
it, mapped into memory: nothing is left of it when the process has gone, however it went.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trio

from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.storage import MANIFEST
from lipsync_fast.errors import LipsyncError, OutputError, words_of
from lipsync_fast.provenance import mp4_uuid_box, xmp_packet

if TYPE_CHECKING:
    from av.packet import Packet

MOST_BYTES = 256 << 20
"""The size of one video; an avatar whose frames make more has none."""
KEPT_BYTES = 512 << 20
"""The size of all that are kept; the one used longest ago goes first."""
NICE = 15
KEY_EVERY = 25
"""Frames between two that need no others: players seek in these videos."""


class _StoppedError(Exception):
    """Nobody waits for the video any more."""


class AvatarVideos:
    """The videos of a front's avatars."""

    def __init__(self) -> None:
        self.kept: OrderedDict[bytes, memoryview] = OrderedDict()
        """By ``content_of`` their packages."""
        self._making = trio.Lock()

    async def get(self, package: AvatarPackage) -> memoryview:
        """The whole file of an avatar's frames; it stays readable for as long as it is held.

        Raises:
            LipsyncError: it cannot be made.
        """
        content = content_of(package)
        async with self._making:
            if content not in self.kept:
                self.kept[content] = await _in_thread(package)
            self.kept.move_to_end(content)
            while sum(map(len, self.kept.values())) > KEPT_BYTES and len(self.kept) > 1:
                self.kept.popitem(last=False)
            return self.kept[content]


def content_of(package: AvatarPackage) -> bytes:
    """The same for packages with the same files: their manifests have all files' checksums."""
    return hashlib.sha256(package.member_bytes(MANIFEST)).digest()


async def _in_thread(package: AvatarPackage) -> memoryview:
    """Make a video in a thread that the others go before."""
    token, done, stop = trio.lowlevel.current_trio_token(), trio.Event(), threading.Event()
    made: list[memoryview | Exception] = []

    def work() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)  # of this thread
            made.append(_encoded(package, stop.is_set))
        except Exception as error:  # raised where it is waited for
            made.append(error)
        token.run_sync_soon(done.set)

    thread = threading.Thread(target=work, name="lipsync-video")
    thread.start()
    try:
        await done.wait()
    finally:
        stop.set()
        with trio.CancelScope(shield=True):  # ends within a frame
            await done.wait()
        thread.join()  # it has nothing more to do
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]


def _encoded(package: AvatarPackage, stopped: Callable[[], bool]) -> memoryview:
    """All frames, encoded.

    Raises:
        LipsyncError: it cannot be.
    """
    import av  # heavy, and only needed here

    try:
        with tempfile.TemporaryFile(prefix="lipsync-video-") as file:
            path = Path(f"/proc/self/fd/{file.fileno()}")
            _write(package, path, stopped)
            with path.open("ab") as end:
                end.write(mp4_uuid_box(xmp_packet(package.manifest.synthetic)))
            return memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    except (OSError, av.FFmpegError) as error:
        raise OutputError(
            f"cannot make the video of {package.manifest.name}: {words_of(error)}"
        ) from None


def _write(package: AvatarPackage, path: Path, stopped: Callable[[], bool]) -> None:
    import av
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

    from lipsync_fast.media.colours import tag, to_yuv
    from lipsync_fast.media.files import media_url
    from lipsync_fast.output.mp4 import video_encoder

    m = package.manifest
    name, options = video_encoder()
    fast = {"movflags": "+faststart"}
    with av.open(media_url(path), "w", format="mp4", options=fast) as container:
        stream = container.add_stream(name, rate=m.fps, options=dict(options))
        assert isinstance(stream, VideoStream)
        across, down = m.frame_width % 2, m.frame_height % 2  # 4:2:0 needs even sizes
        stream.width, stream.height = m.frame_width + across, m.frame_height + down
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.thread_count, context.gop_size = 1, KEY_EVERY
        context.time_base = Fraction(1, m.fps)
        tag(context)
        reformatter = VideoReformatter()
        odd = ((0, down), (0, across), (0, 0))
        size = 0

        def mux(packets: list[Packet[VideoStream]]) -> None:
            nonlocal size
            size += sum(packet.size for packet in packets)
            if size > MOST_BYTES:
                raise LipsyncError(f"the video of {m.name} would have more than {MOST_BYTES} bytes")
            container.mux(packets)

        for avatar_frame in range(m.frame_count):
            if stopped():
                raise _StoppedError
            image = np.pad(package.picture(avatar_frame), odd, mode="edge")
            picture = to_yuv(image, reformatter)
            picture.pts, picture.time_base = avatar_frame, Fraction(1, m.fps)
            mux(stream.encode(picture))
        mux(stream.encode(None))
