# SPDX-License-Identifier: Apache-2.0
"""Every picture and video says how it was made: IPTC's digitalSourceType, as XMP.

The one place that writes it, for JPEG (an APP1 segment), PNG (an iTXt chunk) and MP4 (a top-level
uuid box, as the XMP specification part 3 has it).
"""

from __future__ import annotations

from pathlib import Path

from lipsync_fast.version import __version__

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SYNTHETIC, COMPOSITE = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
PNG_KEYWORD = "XML:com.adobe.xmp"
_JPEG_HEADER = b"http://ns.adobe.com/xap/1.0/\0"
_MP4_UUID = bytes.fromhex("BE7ACFCB97A942E89C71999491E3AFAC")
_BOM = "\ufeff"


def source_type(synthetic: bool) -> str:
    """The URI for a synthetic person, or for generated parts over a real one."""
    return SOURCE_TYPES + (SYNTHETIC if synthetic else COMPOSITE)


def xmp_packet(synthetic: bool) -> bytes:
    """The XMP packet as UTF-8."""
    return f"""<?xpacket begin="{_BOM}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/">
<Iptc4xmpExt:DigitalSourceType>{source_type(synthetic)}</Iptc4xmpExt:DigitalSourceType>
<xmp:CreatorTool>lipsync-fast {__version__}</xmp:CreatorTool>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>""".encode()


def jpeg_with_xmp(jpeg: bytes, packet: bytes) -> bytes:
    """A JPEG with the packet as an APP1 segment, after its APP0 where it has one.

    Raises:
        ValueError: not a JPEG, or the packet is longer than 65,502 bytes.
    """
    if jpeg[:2] != b"\xff\xd8":
        raise ValueError("not a JPEG")
    if len(packet) > 65_533 - len(_JPEG_HEADER):
        raise ValueError(f"XMP packet of {len(packet)} bytes: too long for a JPEG segment")
    at = 2
    if jpeg[2:4] == b"\xff\xe0":
        at = 4 + int.from_bytes(jpeg[4:6], "big")
    size = (2 + len(_JPEG_HEADER) + len(packet)).to_bytes(2, "big")
    return b"".join((jpeg[:at], b"\xff\xe1", size, _JPEG_HEADER, packet, jpeg[at:]))


def append_mp4_xmp(path: Path, packet: bytes) -> None:
    """Add the packet to the end of an MP4 file as a top-level box (no offset in it moves).

    Raises:
        OSError: the file cannot be written.
    """
    size = (8 + len(_MP4_UUID) + len(packet)).to_bytes(4, "big")
    with open(path, "ab") as file:
        file.write(size + b"uuid" + _MP4_UUID + packet)
