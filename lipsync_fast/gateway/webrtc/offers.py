# SPDX-License-Identifier: Apache-2.0
"""What a peer offers: looked at before anything is begun, since strangers write it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiortc import RTCIceCandidate, RTCPeerConnection, RTCSessionDescription
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.sdp import candidate_from_sdp

from lipsync_fast.errors import PeerError
from lipsync_fast.gateway.webrtc.ice import Places
from lipsync_fast.gateway.webrtc.tracks import PictureTrack, SoundTrack

MOST_BYTES = 64 << 10
"""Of an offer; a browser's have some 5 KB."""
MOST_LINES, MOST_MEDIA, MOST_CANDIDATES = 2_000, 4, 64
_H264 = re.compile(r"^a=rtpmap:\d+ H264/90000", re.MULTILINE | re.IGNORECASE)
_OPUS = re.compile(r"^a=rtpmap:\d+ opus/48000", re.MULTILINE | re.IGNORECASE)
_UFRAG = re.compile(r"^a=ice-ufrag:(\S+)", re.MULTILINE)
_MEDIA = re.compile(r"^m=(\w+)", re.MULTILINE)
_MID = re.compile(r"^a=mid:(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Offer:
    """An offer that can be answered.

    Attributes:
        sdp: what of it is handed on.
        sound: it asks for sound.
        ufrag: names the peer's side of ICE.
    """

    sdp: str
    sound: bool
    ufrag: str


def read(text: str, helped: bool) -> Offer:
    """Look at an offer.

    Args:
        helped: see ``ice.Places``. Where not, a peer is met where it comes from: nothing is sent to
            what it names.

    Raises:
        PeerError: it is none, or cannot be answered.
    """
    if len(text) > MOST_BYTES:
        raise PeerError(f"the offer is too large: at most {MOST_BYTES} bytes", 413)
    text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    if not text.startswith("v=0\n") or len(lines) > MOST_LINES:
        raise PeerError("this is no offer in SDP")
    kinds = _MEDIA.findall(text)
    if len(kinds) > MOST_MEDIA or len(set(kinds)) < len(kinds):
        raise PeerError("the offer has more than one picture and one sound")
    if "video" not in kinds:
        raise PeerError("the offer asks for no picture (m=video)")
    if not _H264.search(text):
        raise PeerError("the offer has no H.264, which pictures are sent as")
    if "audio" in kinds and not _OPUS.search(text):
        raise PeerError("the offer has no Opus, which sound is sent as")
    ufrag = _UFRAG.search(text)
    if ufrag is None:
        raise PeerError("the offer has no ICE (a=ice-ufrag)")
    named = [line for line in lines if line.startswith("a=candidate:")]
    if len(named) > MOST_CANDIDATES:
        raise PeerError(f"the offer has more than {MOST_CANDIDATES} candidates")
    kept = [line for line in lines if _is_passed_on(line, helped)]
    return Offer("\r\n".join(kept).rstrip() + "\r\n", "audio" in kinds, ufrag[1])


def _is_passed_on(line: str, helped: bool) -> bool:
    if line == "a=end-of-candidates":  # a peer may come from elsewhere, too
        return False
    if line.startswith("a=candidate:"):
        return helped and ".local " not in line
    return True


async def answer(
    pc: RTCPeerConnection,
    offer: Offer,
    places: Places,
    picture: PictureTrack,
    sound: SoundTrack,
    heard: Callable[[], None],
) -> str:
    """Have a peer connection answer an offer with these tracks.

    Args:
        heard: see ``ice.Met``.

    Raises:
        PeerError: it cannot be.
    """
    transceiver = pc.addTransceiver(picture, direction="sendonly")
    known = RTCRtpSender.getCapabilities("video").codecs
    transceiver.setCodecPreferences([c for c in known if c.name in ("H264", "rtx")])
    if offer.sound:
        beside = pc.addTransceiver(sound, direction="sendrecv")
        known = RTCRtpSender.getCapabilities("audio").codecs
        beside.setCodecPreferences([c for c in known if c.name == "opus"])
    try:
        await pc.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
        places.choose(pc, heard)
        await pc.setLocalDescription(await pc.createAnswer())
    except Exception as error:  # whatever a stranger's text does to somebody else's parser
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise PeerError(f"the offer cannot be answered: {words}") from error
    made: str = pc.localDescription.sdp
    if "a=candidate:" not in made:
        raise PeerError("there is no port for one more client; see webrtc.udp_ports", 503)
    return made


def candidates(fragment: str, offer: Offer) -> list[RTCIceCandidate]:
    """The candidates that a peer has found since its offer.

    Raises:
        PeerError: it is no fragment of SDP, or of another offer.
    """
    text = fragment.replace("\r\n", "\n")
    ufrag = _UFRAG.search(text)
    if ufrag is not None and ufrag[1] != offer.ufrag:
        raise PeerError("ICE cannot be begun again here: make a new offer", 422)
    found: list[RTCIceCandidate] = []
    mid: str | None = None
    for line in text.split("\n"):
        named = _MID.match(line)
        if named is not None:
            mid = named[1]
        if not line.startswith("a=candidate:") or ".local " in line:
            continue
        try:
            candidate: Any = candidate_from_sdp(line.removeprefix("a=candidate:"))
        except (ValueError, AssertionError, IndexError):
            raise PeerError("this is no fragment of SDP") from None
        candidate.sdpMid, candidate.sdpMLineIndex = mid, 0 if mid is None else None
        found.append(candidate)
    return found[:MOST_CANDIDATES]
