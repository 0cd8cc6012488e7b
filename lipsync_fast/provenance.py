# SPDX-License-Identifier: Apache-2.0
"""Where every picture and video says that it was made by a machine.

One XMP packet with IPTC's ``digitalSourceType``, put into JPEG (APP1), PNG (iTXt), MP4 (a ``uuid``
box) and the key frames of H.264 (an SEI message). No other module writes provenance; who makes a
file takes the packet from here.

Sources: IPTC Photo Metadata Standard (Digital Source Type), XMP specification part 3 (where a
packet lies in each container).
"""

from __future__ import annotations

import html
import struct
import uuid
from functools import lru_cache
from typing import TYPE_CHECKING

from lipsync_fast.version import __version__

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SYNTHETIC = SOURCE_TYPES + "trainedAlgorithmicMedia"
"""The whole picture is a model's work: a person who does not exist."""
COMPOSITE = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
"""A model's work over pictures of a real person."""
CREATOR_TOOL = f"lipsync-fast {__version__}"
CREATOR_MARK = b'xmp:CreatorTool="lipsync-fast '
"""What every packet of ours has in it, whatever the version."""

JPEG_XMP_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
MP4_XMP_UUID = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac").bytes
PNG_XMP_KEYWORD = "XML:com.adobe.xmp"
_APP0, _APP1 = 0xE0, 0xE1
_MAX_SEGMENT = 65_533


def source_type(synthetic: bool) -> str:
    """IPTC's URI: trainedAlgorithmicMedia for a synthetic person, else the composite one."""
    return SYNTHETIC if synthetic else COMPOSITE


def _quoted(text: str) -> str:
    # html is small; xml.sax.saxutils would bring urllib and http into every process.
    return f'"{html.escape(text)}"'


@lru_cache(maxsize=2)
def xmp_packet(synthetic: bool) -> bytes:
    """The XMP packet, UTF-8, with the source type and the tool that made the picture.

    Args:
        synthetic: whether the avatar is a person who does not exist (``Manifest.synthetic``).
    """
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about=""'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
        ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f" xmp:CreatorTool={_quoted(CREATOR_TOOL)}"
        f" Iptc4xmpExt:DigitalSourceType={_quoted(source_type(synthetic))}/>"
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


@lru_cache(maxsize=4)
def jpeg_app1(packet: bytes) -> bytes:
    """The JPEG segment (marker included) that carries ``packet``.

    Raises:
        ValueError: the packet is larger than a segment can be.
    """
    body = JPEG_XMP_HEADER + packet
    if len(body) > _MAX_SEGMENT:
        raise ValueError(f"XMP packet of {len(packet)} bytes does not fit into one JPEG segment")
    return struct.pack(">BBH", 0xFF, _APP1, len(body) + 2) + body


def jpeg_with_xmp(jpeg: bytes, packet: bytes) -> bytes:
    """``jpeg`` with ``packet`` put right after SOI, or after the JFIF APP0 where there is one.

    The segment is made once for a packet; a frame costs one copy.

    Raises:
        ValueError: ``jpeg`` does not begin as a JPEG file does.
    """
    if jpeg[:2] != b"\xff\xd8" or len(jpeg) < 6:
        raise ValueError("not a JPEG: it does not begin with FF D8")
    at = 2
    if jpeg[2] == 0xFF and jpeg[3] == _APP0:
        at = 4 + int.from_bytes(jpeg[4:6], "big")
        if at > len(jpeg):
            raise ValueError("not a JPEG: its APP0 segment runs past the end")
    return b"".join((jpeg[:at], jpeg_app1(packet), jpeg[at:]))


def png_info(packet: bytes) -> PngInfo:
    """What to hand to Pillow's ``save(…, pnginfo=…)`` so that a PNG carries ``packet``."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt(PNG_XMP_KEYWORD, packet.decode(), zip=False)
    return info


def mp4_uuid_box(packet: bytes) -> bytes:
    """The top-level MP4 box that carries ``packet``.

    It goes behind all other boxes, so that no offset in the file changes.
    """
    return struct.pack(">I4s", 24 + len(packet), b"uuid") + MP4_XMP_UUID + packet


@lru_cache(maxsize=4)
def h264_sei(packet: bytes) -> bytes:
    """The NAL unit (start code included) that carries ``packet``: user data of XMP's UUID.

    Source: ITU-T H.264, 7.3.2.3 and D.1.7 (user data unregistered), 7.4.1 (emulation prevention).
    """
    payload = MP4_XMP_UUID + packet
    size = b"\xff" * (len(payload) // 255) + bytes([len(payload) % 255])
    body, zeros = bytearray(b"\x06"), 0
    for byte in b"\x05" + size + payload + b"\x80":
        if zeros >= 2 and byte <= 3:
            body.append(3)
            zeros = 0
        body.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes(body)


def h264_with_xmp(unit: bytes, packet: bytes) -> bytes:
    """An access unit (Annex B) with ``packet`` before its first slice, and no other user data.

    Raises:
        ValueError: there is no slice.
    """
    at, kept = unit.find(b"\0\0\1"), list[bytes]()
    while at >= 0:
        kind = unit[at + 3] & 31 if at + 3 < len(unit) else 0
        if kind in (1, 5):
            return b"".join((*kept, h264_sei(packet), b"\0", unit[at:]))
        after = unit.find(b"\0\0\1", at + 3)
        if kind != 6 and after >= 0:  # the encoder's own says its settings only
            kept.append(b"\0" + unit[at:after].rstrip(b"\0"))
        at = after
    raise ValueError("an access unit without a slice")
