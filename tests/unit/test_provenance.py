# SPDX-License-Identifier: Apache-2.0
"""Provenance, read back by tools that are not ours: Exiv2, FFmpeg and Pillow."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from xml.etree import ElementTree

import av
import numpy as np
import pytest
from PIL import Image

from lipsync_fast.output.mp4 import top_level_boxes
from lipsync_fast.provenance import (
    CREATOR_TOOL,
    jpeg_with_xmp,
    mp4_uuid_box,
    png_info,
    source_type,
    xmp_packet,
)

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
EXPECTED = {True: "trainedAlgorithmicMedia", False: "compositeWithTrainedAlgorithmicMedia"}
PICTURE = Image.fromarray(np.arange(64 * 48 * 3, dtype=np.uint8).reshape(48, 64, 3))


def jpeg(**options: object) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def by_exiv2(path: Path) -> dict[str, str]:
    pyexiv2 = pytest.importorskip("pyexiv2", reason="Exiv2 (package pyexiv2) is not installed")
    with pyexiv2.Image(str(path)) as image:
        found: dict[str, str] = image.read_xmp()
        return found


def attributes(packet: bytes | str) -> dict[str, str]:
    """The properties of a packet, by an XML parser."""
    text = packet.decode() if isinstance(packet, bytes) else packet
    root = ElementTree.fromstring(text[text.index("<x:") : text.rindex("<?xpacket")])
    return {k: v for element in root.iter() for k, v in element.attrib.items()}


@pytest.mark.parametrize("synthetic", [True, False])
def test_exiv2_reads_jpeg(tmp_path: Path, synthetic: bool) -> None:
    path = tmp_path / "f.jpg"
    path.write_bytes(jpeg_with_xmp(jpeg(), xmp_packet(synthetic)))
    xmp = by_exiv2(path)
    assert xmp["Xmp.iptcExt.DigitalSourceType"] == IPTC + EXPECTED[synthetic]
    assert xmp["Xmp.xmp.CreatorTool"] == CREATOR_TOOL


@pytest.mark.parametrize("synthetic", [True, False])
def test_exiv2_reads_png(tmp_path: Path, synthetic: bool) -> None:
    path = tmp_path / "f.png"
    PICTURE.save(path, pnginfo=png_info(xmp_packet(synthetic)))
    xmp = by_exiv2(path)
    assert xmp["Xmp.iptcExt.DigitalSourceType"] == IPTC + EXPECTED[synthetic]
    assert xmp["Xmp.xmp.CreatorTool"] == CREATOR_TOOL


@pytest.mark.parametrize("synthetic", [True, False])
def test_pillow_reads_jpeg_and_png(tmp_path: Path, synthetic: bool) -> None:
    (tmp_path / "f.jpg").write_bytes(jpeg_with_xmp(jpeg(), xmp_packet(synthetic)))
    PICTURE.save(tmp_path / "f.png", pnginfo=png_info(xmp_packet(synthetic)))
    for name in ("f.jpg", "f.png"):
        with Image.open(tmp_path / name) as image:
            image.load()
            packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
        assert IPTC + EXPECTED[synthetic] in attributes(packet).values()


@pytest.mark.parametrize("synthetic", [True, False])
def test_ffmpeg_reads_mp4(tmp_path: Path, synthetic: bool) -> None:
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_image(PICTURE)))
        container.mux(stream.encode(None))
    with path.open("ab") as file:
        file.write(mp4_uuid_box(xmp_packet(synthetic)))
    with av.open(str(path), options={"export_xmp": "1"}) as video:
        found = attributes(video.metadata["xmp"])
        assert sum(1 for _ in video.decode(video=0)) == 1
    assert IPTC + EXPECTED[synthetic] in found.values()
    assert CREATOR_TOOL in found.values()
    assert top_level_boxes(path)[-1][0] == "uuid"


def test_a_jpeg_stays_the_same_picture() -> None:
    plain = jpeg(quality=85)
    marked = jpeg_with_xmp(plain, xmp_packet(True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = np.asarray(Image.open(io.BytesIO(plain)))
        after = np.asarray(Image.open(io.BytesIO(marked)))
    assert np.array_equal(before, after)
    assert marked[2:4] == b"\xff\xe0", "JFIF's segment stays first"


def test_a_jpeg_without_jfif_is_marked_too() -> None:
    plain = jpeg()
    bare = plain[:2] + plain[4 + int.from_bytes(plain[4:6], "big") :]
    marked = jpeg_with_xmp(bare, xmp_packet(True))
    assert marked[2:4] == b"\xff\xe1"
    assert Image.open(io.BytesIO(marked)).size == PICTURE.size


@pytest.mark.parametrize(
    "broken", [b"", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0\xff\xff"]
)
def test_what_is_no_jpeg_is_refused(broken: bytes) -> None:
    with pytest.raises(ValueError, match="not a JPEG"):
        jpeg_with_xmp(broken, xmp_packet(True))


def test_the_terms_are_iptcs() -> None:
    assert source_type(True) == IPTC + "trainedAlgorithmicMedia"
    assert source_type(False) == IPTC + "compositeWithTrainedAlgorithmicMedia"
