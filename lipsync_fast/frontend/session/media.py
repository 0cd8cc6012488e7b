# SPDX-License-Identifier: Apache-2.0
"""A session's pictures, and the echo of its sound, behind their 40-byte headers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from lipsync_fast.frontend.engines.trace import SessionTrace
from lipsync_fast.frontend.playout.playout import Appearance, Picture
from lipsync_fast.frontend.session.client_audio import ClientAudio
from lipsync_fast.frontend.session.outbox import Item, Outbox
from lipsync_fast.frontend.session.shown_avatar import ShownAvatar
from lipsync_fast.frontend.session.statistics import SessionStatistics
from lipsync_fast.frontend.session.stream import StreamSender
from lipsync_fast.geometry import EMPTY, Rect, even_size
from lipsync_fast.ipc.messages import scaled_size
from lipsync_fast_client.protocol import MediaHeader, MediaType, pack_media


class MediaSender:
    """Packs what is shown, in the order in which it is; the echo of a frame goes before it.

    Args:
        outbox: where to.
        shown: the avatar, for its own pictures and the form of all.
        audio: keeps the sound, where the client wants it back.
        statistics: count what was shown and sent.
        stream: encodes what is to be a stream.
        trace: follows spoken frames; None where nobody does.

    Attributes:
        pictures: the client wants to see them now; else only sound is sent.
    """

    def __init__(
        self,
        outbox: Outbox,
        shown: ShownAvatar,
        audio: ClientAudio,
        statistics: SessionStatistics,
        stream: StreamSender,
        trace: SessionTrace | None,
    ) -> None:
        self._outbox, self._shown, self._audio = outbox, shown, audio
        self._statistics, self._stream, self._trace = statistics, stream, trace
        self._sequence = 0
        self.pictures = True

    def send(self, picture: Picture) -> None:
        """Send a picture whose turn has come, and the sound that is heard with it."""
        if picture.skipped:  # a gap tells what is missing
            self._sequence += picture.skipped * (2 if self._audio.echoes else 1)
        if picture.frame is not None:
            echo = self._audio.echo(picture.utterance, picture.frame)
            if echo:
                self._post(MediaType.AUDIO, picture, echo, EMPTY, None)
        if not self.pictures or picture.unseen:
            return
        if picture.left_out:
            self._sequence += 1
            return
        appearance = picture.appearance
        if appearance is not None and appearance.coding is not None:
            self._send_in_stream(picture, appearance)
            return
        shown, jpeg = self._shown, picture.jpeg
        if jpeg is None:
            jpeg = shown.own_picture(picture.avatar_frame)
            if jpeg is None:
                return  # none was made yet in this look
        box = picture.box if shown.mouth and picture.box is not None else Rect.of_size(shown.size)
        kind = MediaType.MOUTH if shown.mouth else MediaType.FRAME
        self._post(kind, picture, jpeg, box, partial(self._on_shown(picture), len(jpeg)))

    def _send_in_stream(self, picture: Picture, appearance: Appearance) -> None:
        """Have a picture encoded into the session's stream, which sends it."""
        assert appearance.coding is not None
        m = appearance.manifest
        full = m.frame_width, m.frame_height
        box = Rect.of_size(even_size(scaled_size(full, appearance.coding.max_width)))
        header = self._header(MediaType.H264, picture, box, 0)
        self._stream.send(picture, header, self._on_shown(picture))

    def _on_shown(self, picture: Picture) -> Callable[[int], None]:
        """A picture's turn has come; to be called when the transport has its bytes."""
        statistics = self._statistics
        statistics.on_shown(picture)
        traced = None if self._trace is None else self._trace.shown(picture)

        def sent(size: int) -> None:
            if traced is not None:
                traced()
            statistics.on_sent(picture, size)

        return sent

    def _post(
        self,
        kind: MediaType,
        picture: Picture,
        payload: bytes,
        box: Rect,
        sent: Callable[[], None] | None,
    ) -> None:
        header = self._header(kind, picture, box, len(payload))
        frame = None if kind == MediaType.AUDIO else header.sequence
        self._outbox.post(Item(pack_media(header) + payload, frame, True, sent))

    def _header(self, kind: MediaType, picture: Picture, box: Rect, size: int) -> MediaHeader:
        """Of the next message."""
        self._sequence += 1
        return MediaHeader(
            type=kind,
            flags=picture.flags,
            sequence=self._sequence - 1,
            utterance=picture.utterance,
            pts_us=picture.pts_ns // 1000,
            avatar_frame=picture.avatar_frame,
            box=box,
            size=size,
        )
