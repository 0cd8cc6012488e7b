# SPDX-License-Identifier: Apache-2.0
"""What an import came to: numbers, warnings, a contact sheet, and a sample that was rendered."""

from __future__ import annotations

import time
import wave
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import lipsync_fast
from lipsync_fast.avatars.contact_sheet import contact_sheet
from lipsync_fast.avatars.importing.build import Imported
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.geometry import Rect
from lipsync_fast.timing import FRAME_SAMPLES, SAMPLE_RATE

FLAT = 1.0
"""Standard deviation in grey levels below which a rendered face is one plain colour."""
_FROM_AVATAR, _FROM_SAMPLE = 8, 4
Rgb = NDArray[np.uint8]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """A rendered piece of the recording that comes with the software.

    Attributes:
        seconds: of sound.
        frames: that were made of it.
        took_s: how long that took, on this machine's processors, with loading.
    """

    seconds: float
    frames: int
    took_s: float


class Report(msgspec.Struct, kw_only=True):
    """What an import came to (``--report``).

    Attributes:
        form: what the folder was read as.
        sides: smallest and largest side of the face rectangles in pixels.
        lost: frames that had no rectangle of their own.
        network_width, region: base width and side of the region that the network makes.
        bytes: of the package.
        sample: None if none was asked for.
        sheet: the contact sheet's file, if one was written.
    """

    name: str
    path: str
    form: str
    made_of: str
    checkpoint: str
    audio_encoder: str
    frames: int
    seconds: float
    width: int
    height: int
    sides: tuple[int, int]
    lost: list[int]
    network_width: int
    region: int
    bytes: int
    sample: Sample | None = None
    sheet: str | None = None
    warnings: list[str] = []
    notes: list[str] = []

    def lines(self) -> list[str]:
        """For people."""
        low, high = self.sides
        side = f"{low}" if low == high else f"{low} to {high}"
        rows = [
            ("form", self.form),
            ("frames", f"{self.frames} of {self.width} x {self.height} ({self.seconds:.1f} s)"),
            ("face", f"rectangles of {side} pixels"),
            ("weights", f"{self.checkpoint}: width {self.network_width}, region {self.region}"),
            ("encoder", self.audio_encoder),
            ("package", f"{self.path} ({self.bytes / 1e6:.1f} MB)"),
        ]
        if self.sample is not None:
            s = self.sample
            rows.append(("sample", f"{s.seconds:.2f} s: {s.frames} frames in {s.took_s:.1f} s"))
        if self.sheet is not None:
            rows.append(("sheet", f"{self.sheet}: look at the rectangles and the faces"))
        rows += [("note", note) for note in self.notes]
        rows += [("warning", warning) for warning in self.warnings]
        return [f"{name:<11}{value}" for name, value in rows]


def make_report(
    imported: Imported, sample_s: float, advance: Callable[[], None] | None = None
) -> tuple[Report, Image.Image]:
    """Look at a finished import, and render a sample with it.

    Args:
        imported: as ``import_avatar`` returns it.
        sample_s: seconds of sound to render; 0 for none.
        advance: called for each frame of the sample.

    Returns:
        The report, and a sheet of frames with their rectangles, the sample's last.

    Raises:
        LipsyncError: the avatar cannot be rendered.
    """
    source = imported.source
    with AvatarPackage.open(imported.path) as package:
        m, track = package.manifest, source.track
        sides = [max(rect.size) for rect in track.rects]
        report = Report(
            name=m.name,
            path=str(imported.path),
            form=source.form,
            made_of=str(source.path),
            checkpoint=str(source.networks.checkpoint),
            audio_encoder=str(source.networks.audio_encoder),
            frames=m.frame_count,
            seconds=m.frame_count / m.fps,
            width=m.frame_width,
            height=m.frame_height,
            sides=(min(sides), max(sides)),
            lost=track.lost,
            network_width=m.width,
            region=m.region,
            bytes=sum(entry.size for entry in m.files.values()),
            warnings=list(source.warnings),
            notes=list(source.notes),
        )
        chosen = _spread(m.frame_count, _FROM_AVATAR)
        tiles = [(package.picture(i), f"frame {i}", package.rect(i)) for i in chosen]
    if sample_s > 0:
        tiles += _sample(imported.path, sample_s, report, advance)
    pictures, captions, rects = zip(*tiles, strict=True)
    return report, contact_sheet(pictures, captions, rects)


def _spread(count: int, most: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, count - 1, min(most, count))})


def _sample(
    path: Path, seconds: float, report: Report, advance: Callable[[], None] | None
) -> list[tuple[Rgb, str, Rect]]:
    """Render; four of the frames are kept, and what a glance would see wrong is a warning."""
    begun = time.perf_counter()
    pcm = _recording()[: max(1, round(seconds * SAMPLE_RATE))]
    total = -(-len(pcm) // FRAME_SAMPLES)
    shown, made, flat = set(_spread(total, _FROM_SAMPLE)), 0, 0
    tiles: list[tuple[Rgb, str, Rect]] = []
    with lipsync_fast.open(path, backend="cpu") as avatar:
        for frame in avatar.render(pcm, SAMPLE_RATE):
            rect = avatar.package.rect(frame.avatar_frame)
            edge = rect.width // 8  # there lies what the network does not make
            inner = frame.image[rect.slices][edge : rect.height - edge, edge : rect.width - edge]
            flat += float(inner.std()) < FLAT
            if frame.index in shown:
                tiles.append((frame.image, f"sample, {float(frame.pts):.2f} s", rect))
            made += 1
            if advance is not None:
                advance()
        heard, silent = (next(iter(avatar.render(pcm, SAMPLE_RATE))).image for pcm in _extremes())
    if flat:
        report.warnings.append(f"{flat} of {made} frames of the sample have a face of one colour")
    if np.array_equal(heard, silent):
        report.warnings.append("the face is the same for silence and for a sound")
    took = time.perf_counter() - begun
    report.sample = Sample(seconds=len(pcm) / SAMPLE_RATE, frames=made, took_s=took)
    return tiles


def _recording() -> NDArray[np.int16]:
    """The recording that comes with the package, 16 kHz mono."""
    path = Path(lipsync_fast.__file__).parent / "data" / "demo" / "speech.wav"
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def _extremes() -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """A second of a tone, and of silence."""
    times = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    return (8000 * np.sin(2 * np.pi * 220 * times)).astype(np.int16), np.zeros(
        SAMPLE_RATE, np.int16
    )
