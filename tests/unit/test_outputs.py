# SPDX-License-Identifier: Apache-2.0
"""The writers, given frames by hand: what lies there afterwards, and what does not."""

from __future__ import annotations

import io
import math
import os
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from videos import demo_pictures

from lipsync_fast.errors import MediaError, OutputError
from lipsync_fast.output import check_output, open_writer, output_kind
from lipsync_fast.output.mjpeg import MjpegWriter
from lipsync_fast.output.mp4 import Mp4Writer, top_level_boxes
from lipsync_fast.output.pngs import PngFolderWriter
from lipsync_fast.output.sheet import ContactSheet
from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

PACKET = xmp_packet(True)


@dataclass
class Frame:
    """A frame whose picture is one colour that tells its number."""

    index: int
    height: int = 96
    width: int = 128

    @property
    def pts(self) -> Fraction:
        return Fraction(self.index, 25)

    @property
    def image(self) -> NDArray[np.uint8]:
        image = np.zeros((self.height, self.width, 3), np.uint8)
        image[...] = (40 + self.index % 100, 200, 30)
        return image

    @property
    def jpeg(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "JPEG")
        return jpeg_with_xmp(buffer.getvalue(), PACKET)


def noise(seconds: float, rate: int, channels: int = 1) -> NDArray[np.float32]:
    """Low-passed noise, samples x channels: it correlates in one peak, and AAC keeps it."""
    count = round(seconds * rate)
    white = np.random.default_rng(7).normal(size=(count + 15, channels))
    smooth = np.stack([np.convolve(w, np.hanning(18)[1:-1], "valid") for w in white.T], axis=1)
    return (0.3 * smooth / np.abs(smooth).max()).astype(np.float32)


def write_wav(path: Path, samples: NDArray[np.float32], rate: int) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def render_mp4(
    target: Path, sound: Path, seconds: float, height: int = 96, width: int = 128
) -> int:
    frames = math.ceil(round(seconds * 25, 6))
    with Mp4Writer(target, sound, PACKET) as writer:
        for index in range(frames):
            writer.write(Frame(index, height, width))
        writer.commit()
    return frames


def lag(source: NDArray[np.float32], decoded: NDArray[np.float32]) -> int:
    """By how many samples ``decoded`` is late, from the peak of their correlation."""
    n = 1 << (len(source) + len(decoded)).bit_length()
    correlation = np.fft.irfft(np.fft.rfft(decoded, n) * np.conj(np.fft.rfft(source, n)), n)
    peak = int(np.argmax(correlation))
    return peak if peak < n // 2 else peak - n


def decode(path: Path) -> tuple[NDArray[np.float32], int, list[tuple[Fraction, NDArray[np.uint8]]]]:
    """First channel and rate of the sound, and (time, picture) of all frames."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        sound = [frame.to_ndarray()[0] for frame in container.decode(stream)]
        assert stream.rate is not None
        rate = stream.rate
    with av.open(str(path)) as container:
        pictures = []
        for frame in container.decode(video=0):
            assert frame.pts is not None
            assert frame.time_base is not None
            pictures.append((frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")))
    return np.concatenate(sound), rate, pictures


@pytest.mark.parametrize(
    ("rate", "channels"), [(16_000, 1), (44_100, 2), (48_000, 1), (8_000, 1), (22_050, 1)]
)
def test_mp4_sound_is_in_step_to_the_sample(tmp_path: Path, rate: int, channels: int) -> None:
    seconds = 2.013
    samples = noise(seconds, rate, channels)
    frames = render_mp4(
        tmp_path / "o.mp4", write_wav(tmp_path / "s.wav", samples, rate), len(samples) / rate
    )
    sound, out_rate, pictures = decode(tmp_path / "o.mp4")
    assert out_rate == rate
    assert lag(samples[:, 0], sound) == 0
    assert abs(len(sound) - len(samples)) < 1024, "AAC fills its last block only"
    assert [time for time, _ in pictures] == [Fraction(i, 25) for i in range(frames)]
    assert Fraction(frames, 25) >= Fraction(len(samples), rate), "pictures cover the sound's end"


def test_mp4_resamples_a_rate_that_aac_lacks_without_lag(tmp_path: Path) -> None:
    source = noise(1.5, 48_000)
    fine = np.repeat(source, 4, axis=0)  # 192 kHz: each sample held for four
    render_mp4(tmp_path / "o.mp4", write_wav(tmp_path / "s.wav", fine, 192_000), 1.5)
    sound, rate, _ = decode(tmp_path / "o.mp4")
    assert rate == 48_000
    assert lag(source[:, 0], sound) in (0, 1), "holding itself delays by 3/8 of a sample"


def test_mp4_is_tagged_and_starts_fast(tmp_path: Path) -> None:
    render_mp4(tmp_path / "o.mp4", write_wav(tmp_path / "s.wav", noise(0.5, 16_000), 16_000), 0.5)
    names = [name for name, _ in top_level_boxes(tmp_path / "o.mp4")]
    assert names.index("moov") < names.index("mdat")
    assert names[-1] == "uuid"
    with av.open(str(tmp_path / "o.mp4")) as container:
        video = container.streams.video[0].codec_context
        assert container.streams.video[0].average_rate == 25
        assert video.pix_fmt == "yuv420p"
        assert (video.colorspace, video.color_range) == (1, 1)
        assert (video.color_primaries, video.color_trc) == (1, 1)


def test_mp4_shows_the_colours_that_went_in(tmp_path: Path) -> None:
    render_mp4(tmp_path / "o.mp4", write_wav(tmp_path / "s.wav", noise(0.4, 16_000), 16_000), 0.4)
    _, _, pictures = decode(tmp_path / "o.mp4")
    for index, (_, picture) in enumerate(pictures):
        worst = np.abs(picture.astype(int) - Frame(index).image).max()
        assert worst <= 6, "bt709 in and out"


@pytest.mark.slow
def test_mp4_is_as_bright_as_the_jpegs(tmp_path: Path) -> None:
    """Decoded by its tags, with BT.709's own formulas: decoders' quick ways are darker."""
    (picture,) = demo_pictures(1, 0, 2)
    sound = write_wav(tmp_path / "s.wav", noise(0.4, 16_000), 16_000)
    with Mp4Writer(tmp_path / "o.mp4", sound, PACKET) as writer:
        for index in range(10):
            writer.write(Still(index, picture))
        writer.commit()
    with Image.open(io.BytesIO(Still(0, picture).jpeg)) as jpeg:
        shown = np.asarray(jpeg.convert("RGB"), float)
    with av.open(str(tmp_path / "o.mp4")) as container:
        for frame in container.decode(video=0):
            assert (frame.colorspace, frame.color_range) == (1, 1)
            assert abs(by_the_standard(frame).mean((0, 1)) - shown.mean((0, 1))).max() < 0.28


@dataclass
class Still:
    """A frame of one picture."""

    index: int
    image: NDArray[np.uint8]

    @property
    def pts(self) -> Fraction:
        return Fraction(self.index, 25)

    @property
    def jpeg(self) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self.image).save(buffer, "JPEG", quality=92)
        return buffer.getvalue()


def by_the_standard(frame: av.VideoFrame) -> NDArray[np.float64]:
    """BT.709 of limited range in yuv420p to RGB, in floating point."""
    y, u, v = (
        np.frombuffer(bytes(plane), np.uint8)
        .reshape(plane.height, plane.line_size)[:, : plane.width]
        .astype(float)
        for plane in frame.planes
    )
    luma = (y - 16) / 219
    cb, cr = ((c - 128).repeat(2, 0).repeat(2, 1) / 224 for c in (u, v))
    red, blue = luma + 1.5748 * cr, luma + 1.8556 * cb
    green = (luma - 0.2126 * red - 0.0722 * blue) / 0.7152
    return 255 * np.stack([red, green, blue], axis=-1).clip(0, 1)


@pytest.mark.parametrize(("height", "width"), [(97, 128), (96, 129), (97, 131)])
def test_mp4_pads_odd_sizes(tmp_path: Path, height: int, width: int) -> None:
    sound = write_wav(tmp_path / "s.wav", noise(0.2, 16_000), 16_000)
    render_mp4(tmp_path / "o.mp4", sound, 0.2, height, width)
    _, _, pictures = decode(tmp_path / "o.mp4")
    assert pictures[0][1].shape == (height + height % 2, width + width % 2, 3)


@pytest.mark.parametrize("samples", [1, 320, 641])
def test_mp4_of_almost_nothing(tmp_path: Path, samples: int) -> None:
    sound = write_wav(tmp_path / "s.wav", noise(1, 16_000)[:samples], 16_000)
    frames = render_mp4(tmp_path / "o.mp4", sound, samples / 16_000)
    decoded, _, pictures = decode(tmp_path / "o.mp4")
    assert len(pictures) == frames == math.ceil(samples / 640)
    assert len(decoded) >= samples


def test_mp4_survives_nan_and_clips(tmp_path: Path) -> None:
    samples = noise(1, 16_000)[:, 0] * 20
    samples[4000:4010] = np.nan
    samples[5000] = np.inf
    path = tmp_path / "s.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    render_mp4(tmp_path / "o.mp4", path, 1.0)
    sound, _, _ = decode(tmp_path / "o.mp4")
    assert np.isfinite(sound).all()
    assert lag(np.clip(np.nan_to_num(samples, posinf=0), -1, 1), sound) == 0


def test_png_folder_is_lossless(tmp_path: Path) -> None:
    with PngFolderWriter(tmp_path / "o", PACKET) as writer:
        for index in range(3):
            writer.write(Frame(index, 97, 131))
        writer.commit()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o"]
    names = sorted(p.name for p in (tmp_path / "o").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for index, name in enumerate(names):
        with Image.open(tmp_path / "o" / name) as picture:
            assert np.array_equal(np.asarray(picture), Frame(index, 97, 131).image)


def test_mjpeg_is_jpegs_one_after_another() -> None:
    stream = io.BytesIO()
    with MjpegWriter(stream) as writer:
        for index in range(3):
            writer.write(Frame(index))
        writer.commit()
    stream.seek(0)
    with av.open(stream, format="mjpeg") as container:
        assert sum(1 for _ in container.decode(video=0)) == 3


@pytest.mark.parametrize(("frames", "cells"), [(1, 1), (5, 5), (12, 12), (100, 12), (1000, 12)])
def test_contact_sheet_spans_the_video(tmp_path: Path, frames: int, cells: int) -> None:
    sheet = ContactSheet(tmp_path / "s.png", PACKET)
    for index in range(frames):
        sheet.add(Frame(index))
    sheet.write()
    with Image.open(tmp_path / "s.png") as picture:
        columns = min(4, cells)
        width = (picture.width - 8) // columns
        assert picture.width == columns * width + 8
        assert picture.height >= -(-cells // columns) * 96


@pytest.mark.parametrize("out", ["o.mp4", "o", "s.png"])
def test_leaving_without_commit_leaves_nothing(tmp_path: Path, out: str) -> None:
    sound = write_wav(tmp_path / "s.wav", noise(1, 16_000), 16_000)
    with pytest.raises(RuntimeError, match="stop"):  # noqa: PT012
        if out == "s.png":
            ContactSheet(tmp_path / out, PACKET).add(Frame(0))
            raise RuntimeError("stop")
        with open_writer(str(tmp_path / out), sound, PACKET, force=False) as writer:
            for index in range(10):
                writer.write(Frame(index))
            raise RuntimeError("stop")
    assert [p.name for p in tmp_path.iterdir()] == ["s.wav"]


def test_a_file_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    sound = write_wav(tmp_path / "s.wav", noise(0.2, 16_000), 16_000)
    target = tmp_path / "o.mp4"
    with Mp4Writer(target, sound, PACKET) as writer:
        writer.write(Frame(0))
        target.write_bytes(b"precious")
        with pytest.raises(OutputError, match="appeared"):
            writer.commit()
    assert target.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mp4", "s.wav"]


def test_a_folder_that_fills_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "o"
    with PngFolderWriter(target, PACKET) as writer:
        writer.write(Frame(0))
        target.mkdir()
        (target / "precious").touch()
        with pytest.raises(OutputError, match="not empty"):
            writer.commit()
    assert [p.name for p in tmp_path.rglob("*")] == ["o", "precious"]


def test_force_replaces_our_own_pictures_only(tmp_path: Path) -> None:
    target = tmp_path / "o"
    for count in (4, 2):
        with PngFolderWriter(target, PACKET, force=True) as writer:
            for index in range(count):
                writer.write(Frame(index))
            writer.commit()
        assert len(list(target.iterdir())) == count
    assert [p.name for p in tmp_path.iterdir()] == ["o"]
    with pytest.raises(OutputError, match="not empty"):
        PngFolderWriter(target, PACKET)
    Image.new("RGB", (8, 8)).save(target / "000007.png")  # named as ours, but not ours
    with pytest.raises(OutputError, match="did not write"):
        PngFolderWriter(target, PACKET, force=True)
    assert (target / "000007.png").exists()


def test_force_never_takes_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="did not write"):
        check_output(str(tmp_path / "home"), force=True)
    (tmp_path / "dir.mp4").mkdir()
    with pytest.raises(OutputError, match="folder of that name"):
        check_output(str(tmp_path / "dir.mp4"), force=True)


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    with PngFolderWriter(tmp_path / "o", PACKET) as writer:
        writer.write(Frame(0))
        writer.commit()
    assert os.listdir(tmp_path / "o") == ["000000.png"]


def test_out_says_what_is_written() -> None:
    assert output_kind("-") == "mjpeg"
    assert output_kind("a/B.MP4") == "mp4"
    assert output_kind("frames") == "pngs"
    assert output_kind("frames.v2") == "pngs"
    for name in ("a.mov", "a.webm", "a.png"):
        with pytest.raises(OutputError, match=r"mp4|folder"):
            output_kind(name)


def test_a_recording_without_sound_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(MediaError, match="no sound"):
        Mp4Writer(tmp_path / "o.mp4", tmp_path / "v.mp4", PACKET)
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]
