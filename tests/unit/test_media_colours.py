# SPDX-License-Identifier: Apache-2.0
"""Pictures of any container, matrix, range and depth are those that were filmed; HDR is known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media_files import hiss, write
from numpy.typing import NDArray

from lipsync_fast.errors import MediaError
from lipsync_fast.media.hdr import HLG, NAMES, PQ, tone_mapping_filter
from lipsync_fast.media.video import Video
from lipsync_fast.prepare.sound import write_sound

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
"""Of red and blue, by FFmpeg's number of the matrix."""
LIMITED, FULL = 1, 2
Rgb = NDArray[np.uint8]


def filmed() -> Rgb:
    """Patches of many colours, each 8 x 8, so that coarse chroma loses nothing."""
    rng = np.random.default_rng(5)
    patches = rng.integers(30, 226, (16, 16, 3)).astype(np.uint8)
    return np.ascontiguousarray(patches.repeat(8, 0).repeat(8, 1))


def as_yuv(rgb: NDArray[Any], matrix: int, range_: int, depth: int = 8) -> NDArray[np.uint16]:
    """The planes of yuv420p, one under the other, by the standards' own formulas."""
    red, blue = WEIGHTS[matrix]
    r, g, b = (rgb[..., i].astype(float) / 255 for i in range(3))
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    u, v = (p.reshape(p.shape[0] // 2, 2, -1, 2).mean((1, 3)) for p in (u, v))
    unit, most = 1 << depth - 8, (1 << depth) - 1
    if range_ == LIMITED:
        planes = [unit * (16 + 219 * y), unit * (128 + 224 * u), unit * (128 + 224 * v)]
    else:
        planes = [most * y, 128 * unit + most * u, 128 * unit + most * v]
    flat = np.concatenate([np.rint(p).ravel() for p in planes])
    return flat.clip(0, most).astype(np.uint16)


def encode(
    path: Path,
    rgb: NDArray[Any],
    *,
    matrix: int = 1,
    range_: int = LIMITED,
    depth: int = 8,
    transfer: int = 1,
    primaries: int = 1,
    codec: str = "ffv1",
    frames: int = 3,
) -> Path:
    """A video of one picture, whose planes are written as they are."""
    height, width = rgb.shape[:2]
    data = as_yuv(rgb, matrix, range_, depth)
    kind = "yuv420p" if depth == 8 else f"yuv420p{depth}le"
    raw = data.astype(np.uint8 if depth == 8 else "<u2").tobytes()
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, kind
        context = stream.codec_context
        context.colorspace, context.color_range = matrix, range_
        context.color_trc, context.color_primaries = transfer, primaries
        for i in range(frames):
            frame = av.VideoFrame(width, height, kind)
            at = 0
            for plane in frame.planes:
                line = plane.width * (1 if depth == 8 else 2)
                rows = [
                    raw[at + y * line : at + (y + 1) * line].ljust(plane.line_size, b"\0")
                    for y in range(plane.height)
                ]
                plane.update(b"".join(rows).ljust(plane.buffer_size, b"\0"))
                at += line * plane.height
            frame.colorspace, frame.color_range = matrix, range_
            frame.pts, frame.time_base = i, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def first(path: Path) -> Rgb:
    with Video(path) as video:
        shown = next(iter(video.pictures())).rgb
    assert shown is not None
    return shown


def off(path: Path, wanted: Rgb) -> tuple[float, float]:
    """By how much all is lighter or darker, and the largest difference, within the patches."""
    within = (slice(None), slice(2, 6), slice(None), slice(2, 6))
    apart = first(path).astype(float) - wanted
    difference = apart.reshape(16, 8, 16, 8, 3)[within]
    return abs(float(difference.mean())), float(np.abs(difference).max())


@pytest.mark.parametrize("range_", [LIMITED, FULL], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 5, 6, 9])
@pytest.mark.parametrize("depth", [8, 10])
def test_colours_of_every_matrix_range_and_depth(
    tmp_path: Path, matrix: int, range_: int, depth: int
) -> None:
    path = encode(tmp_path / "v.mkv", filmed(), matrix=matrix, range_=range_, depth=depth)
    mean, most = off(path, filmed())
    assert mean < 0.4
    assert most <= 4


def test_wide_colours_without_hdr_are_told(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mkv", filmed(), matrix=9, depth=10, transfer=14, primaries=9)
    with Video(path) as video:
        list(video.pictures())
        assert any("BT.2020" in warning for warning in video.warnings)


# ---------------------------------------------------------------- HDR


def hdr(rgb: Rgb, transfer: int) -> NDArray[np.float64]:
    """BT.709 pictures as HDR signals in 0 to 255, white at 203 cd/m² (BT.2408, BT.2100)."""
    light = (rgb / 255.0) ** 2.4
    wide = (
        light
        @ np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]).T
    )
    if transfer == PQ:
        power = (wide * 203 / 10_000) ** 0.1593017578125
        signal = ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375
    else:
        display = wide * 203 / 1000
        y = display @ np.array([0.2627, 0.6780, 0.0593])
        scene = display * np.maximum(y, 1e-9)[..., None] ** (1 / 1.2 - 1)
        high = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), high)
    made: NDArray[np.float64] = 255 * signal.clip(0, 1)
    return made


@pytest.mark.parametrize("transfer", [HLG, PQ], ids=["HLG", "PQ"])
def test_hdr_is_tone_mapped_or_refused_in_words(tmp_path: Path, transfer: int) -> None:
    signal = hdr(filmed(), transfer)
    path = encode(tmp_path / "v.mkv", signal, matrix=9, depth=10, transfer=transfer, primaries=9)
    if tone_mapping_filter() is None:
        with pytest.raises(MediaError, match="is HDR video") as caught:
            first(path)
        said = str(caught.value)
        assert NAMES[transfer] in said
        assert "convert the video first" in said
        assert "ffmpeg -i" in said
        assert len(said.splitlines()) == 1
    else:
        mean, _ = off(path, filmed())
        assert mean < 12


def test_hdr_is_known_by_its_frames_too(tmp_path: Path) -> None:
    """A container that says nothing of colours: the coded pictures do."""
    path = encode(
        tmp_path / "v.ts", hdr(filmed(), HLG), matrix=9, depth=10, transfer=HLG, primaries=9,
        codec="libx265",
    )  # fmt: skip
    if tone_mapping_filter() is None:
        with pytest.raises(MediaError, match="HLG"):
            first(path)


# ---------------------------------------------------------------- containers


@pytest.mark.parametrize(
    ("name", "container", "codecs"),
    [
        ("v.flv", None, ("libx264", "aac")),
        ("w.flv", None, ("flv", "libmp3lame")),
        ("v.mpg", None, ("mpeg1video", "mp2")),
        ("v.vob", "vob", ("mpeg2video", "mp2")),
        ("v.ts", None, ("libx264", "aac")),
        ("v.webm", None, ("libvpx", "libopus")),
        ("v.avi", None, ("mpeg4", "pcm_s16le")),
    ],
)
def test_containers_of_every_kind(
    tmp_path: Path, name: str, container: str | None, codecs: tuple[str, str]
) -> None:
    path = write(
        tmp_path / name,
        pictures=50,
        sounds=[(hiss(2, 44_100), True)],
        video=codecs[0],
        audio=codecs[1],
        rate=48_000 if codecs[1] == "libopus" else 44_100,
        container=container,
    )
    with Video(path) as video:
        shown = [float(p.rgb.mean()) for p in video.pictures() if p.rgb is not None]
        assert video.warnings == []
        assert video.begins is not None
        made = write_sound(path, video.begins, 50, tmp_path / "s.wav")
    assert len(shown) == pytest.approx(50, abs=1)
    assert shown == pytest.approx([20 + 4 * i for i in range(50)][: len(shown)], abs=6)
    assert made is not None
    assert not any("early" in warning for warning in made)
