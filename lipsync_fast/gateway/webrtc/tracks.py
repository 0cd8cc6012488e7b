# SPDX-License-Identifier: Apache-2.0
"""What a peer is sent: pictures as the session's access units, and sound as Opus, on one clock.

RTP's time stamps are media time (``timeline``). Which moment each stands for is said by sender
reports; aiortc writes into them when a packet was sent, so they are mended here: picture and sound
are in step by what the server says, however late either of them was sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from typing import Any, TypeAlias

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.clock import current_datetime, datetime_to_ntp
from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtp import RtcpSrPacket

from lipsync_fast.gateway.webrtc.timeline import Timeline

PICTURE_RATE, SOUND_RATE = 90_000, 48_000
PACKET = 960
"""Samples of an Opus packet: 20 ms."""
MOST_PICTURES = 25
"""That wait to be sent; a peer for which more do is sent a key frame next."""
DELAY_US = 8_000
"""Sound comes 40 ms at a time, at the beginning of them, some sooner than others by so much."""
HOLD_S = 0.2
"""For so long sound that is late is waited for, where something is being said."""
MOST_SOUND = 10 * SOUND_RATE
"""Samples that may wait; sound comes in its own time, so some hundreds of milliseconds do."""
BEHIND_US = 1_000_000
"""Where sending has stood still for longer, what was silent meanwhile is left out."""
BITRATE = 48_000
SILENCE = b"\xf8\xff\xfe"
"""20 ms of it: CELT, of all frequencies, mono, nothing in it. A decoder takes it at any time."""
Packet: TypeAlias = "av.Packet[Any]"
Samples: TypeAlias = "np.ndarray[Any, np.dtype[np.int16]]"
TAIL = 3
"""Packets of silence that are encoded behind sound, so that its end is heard."""


class Track(MediaStreamTrack):
    """What both are.

    Attributes:
        begun: set when the peer can be sent to.
        sent: media time of the last packet, of which aiortc's sender has taken the next one.
    """

    def __init__(self, timeline: Timeline) -> None:
        super().__init__()
        self.timeline = timeline
        self.begun = asyncio.Event()
        self.sent: int | None = None


class PictureTrack(Track):
    """The session's access units; never one that could not be decoded.

    Args:
        need_key: asks the session for a key frame.
    """

    kind = "video"

    def __init__(self, timeline: Timeline, need_key: Callable[[], None]) -> None:
        super().__init__(timeline)
        self._need_key, self._waits_for_key = need_key, True
        self._queue: deque[tuple[bytes, int]] = deque()
        self._came = asyncio.Event()

    def put(self, access_unit: bytes, media: int, key: bool) -> bool:
        """The next picture; whether it is sent."""
        if not self.begun.is_set() or (self._waits_for_key and not key):
            return False
        if len(self._queue) >= MOST_PICTURES:
            self.begin_again()
            self._need_key()
            return False
        self._waits_for_key = False
        self._queue.append((access_unit, media))
        self._came.set()
        return True

    def begin_again(self) -> None:
        """What waits cannot be built on: the next picture is a key frame."""
        self._queue.clear()
        self._waits_for_key = True

    async def recv(self) -> Packet:
        """The next access unit, for aiortc's packetizer."""
        self.begun.set()
        while not self._queue:
            if self.readyState != "live":
                raise MediaStreamError
            self._came.clear()
            await self._came.wait()
        access_unit, self.sent = self._queue.popleft()
        packet: Packet = av.Packet(access_unit)
        packet.pts, packet.time_base = self.sent * 9 // 100, Fraction(1, PICTURE_RATE)
        return packet

    def stop(self) -> None:
        """There is nobody to send to any more."""
        super().stop()
        self._came.set()


class SoundTrack(Track):
    """The session's sound, 48 kHz mono, and silence where there is none: a packet each 20 ms."""

    kind = "audio"

    def __init__(self, timeline: Timeline) -> None:
        super().__init__(timeline)
        self._encoder = Opus()
        self._next = -1  # sample of the next packet
        self._first, self._pcm = 0, np.zeros(0, np.int16)  # sound that waits, from which sample on
        self._speaking, self._silent = False, 0
        self._came = asyncio.Event()

    def put(self, pcm: bytes, media: int) -> None:
        """Sound, from a media time on; what has no room any more is left out."""
        samples = np.frombuffer(pcm, np.int16)
        at = _sample(media)
        end = self._first + len(self._pcm)
        if len(self._pcm) == 0:
            self._first, end = at, at
        if abs(at - end) > 2:  # apart from rounding
            gap = np.zeros(max(0, at - end), np.int16)
            samples = np.concatenate([gap, samples[max(0, end - at) :]])
        if len(self._pcm) + len(samples) <= MOST_SOUND:
            self._pcm = np.concatenate([self._pcm, samples])
        self._speaking = True
        self._came.set()

    def end(self) -> None:
        """Nothing more is said for now: nothing is waited for."""
        self._speaking = False
        self._came.set()

    def stop(self) -> None:
        """There is nobody to send to any more."""
        super().stop()
        self._encoder.close()
        self._came.set()

    def clear(self) -> None:
        """What waits is void."""
        self._pcm = self._pcm[:0]
        self.end()

    async def recv(self) -> Packet:
        """The next packet, in its time."""
        self.begun.set()
        now = self.timeline.now
        if self._next < 0 or self._next < _sample(now - BEHIND_US):
            self._next = _sample(now) // PACKET * PACKET
        await asyncio.sleep(max(0.0, self.timeline.until(_media(self._next) + DELAY_US)))
        if self._speaking and not self._has_all:
            await self._late()
        if self.readyState != "live":
            raise MediaStreamError
        samples, at = self._take(), self._next
        self._next += PACKET
        self.sent = _media(at)
        packet: Packet = av.Packet(self._coded(samples))
        packet.pts, packet.time_base = at, Fraction(1, SOUND_RATE)
        return packet

    @property
    def _has_all(self) -> bool:
        return self._first + len(self._pcm) >= self._next + PACKET

    async def _late(self) -> None:
        """Wait for sound that should be there; give it up after a while."""
        try:
            async with asyncio.timeout(HOLD_S):
                while self._speaking and not self._has_all:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            self._speaking = False

    def _take(self) -> Samples | None:
        """The next packet's samples; None for silence."""
        begin, end = self._next - self._first, self._next - self._first + PACKET
        if not len(self._pcm) or end <= 0 or begin >= len(self._pcm):
            if begin >= len(self._pcm):
                self._pcm = self._pcm[:0]
            return None
        made = np.zeros(PACKET, np.int16)
        piece = self._pcm[max(0, begin) : end]
        made[max(0, -begin) : max(0, -begin) + len(piece)] = piece
        self._pcm = self._pcm[end:]
        self._first = self._next + PACKET
        return made

    def _coded(self, samples: Samples | None) -> bytes:
        if samples is not None:
            self._silent = 0
            return self._encoder.encode(samples)
        self._silent += 1
        if self._silent <= TAIL:
            return self._encoder.encode(np.zeros(PACKET, np.int16))
        return SILENCE


class Opus:
    """An encoder of packets of 20 ms."""

    def __init__(self) -> None:
        context: Any = av.CodecContext.create("libopus", "w")
        context.sample_rate, context.format, context.layout = SOUND_RATE, "s16", "mono"
        context.bit_rate, context.time_base = BITRATE, Fraction(1, SOUND_RATE)
        context.options = {"application": "voip", "frame_duration": "20"}
        self._context, self._count = context, 0

    def close(self) -> None:
        """Let go of what it holds: two threads, which else are there until somebody collects it."""
        self._context = None

    def encode(self, samples: Samples) -> bytes:
        """A packet."""
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.time_base = SOUND_RATE, Fraction(1, SOUND_RATE)
        frame.pts = self._count * PACKET
        self._count += 1
        return b"".join(bytes(packet) for packet in self._context.encode(frame))


def watch(sender: RTCRtpSender, track: Track, heard: Callable[[], None]) -> None:
    """Mend a sender's reports, and be told of what its peer reports.

    Args:
        heard: called for each report; a peer that is there sends some each second.
    """
    say, hear = sender._send_rtcp, sender._handle_rtcp_packet

    async def send(packets: list[Any]) -> None:
        for packet in packets:
            if isinstance(packet, RtcpSrPacket) and track.sent is not None:
                since = timedelta(seconds=track.timeline.until(track.sent))
                packet.sender_info.ntp_timestamp = datetime_to_ntp(current_datetime() + since)
        await say(packets)

    async def handle(packet: Any) -> None:
        heard()
        await hear(packet)

    own: Any = sender
    own._send_rtcp, own._handle_rtcp_packet = send, handle


def on_picture_loss(sender: RTCRtpSender, ask: Callable[[], None]) -> None:
    """Have ``ask`` called where the peer cannot decode (PLI, FIR)."""
    own: Any = sender
    own._send_keyframe = ask


def _sample(media: int) -> int:
    return round(media * SOUND_RATE / 1_000_000)


def _media(sample: int) -> int:
    return sample * 1_000_000 // SOUND_RATE
