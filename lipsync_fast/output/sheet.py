# SPDX-License-Identifier: Apache-2.0
"""A contact sheet: a grid of evenly spaced frames, each with its time."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lipsync_fast.errors import OutputError
from lipsync_fast.output.base import FrameLike, check_file_target, publish_bytes
from lipsync_fast.provenance import jpeg_with_xmp, png_info
from lipsync_fast.timing import FPS

COLUMNS, ROWS = 4, 3
CELL = 320
"""Longest side of one picture on the sheet, in pixels."""
_GAP, _CAPTION = 8, 22
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


def check_sheet_target(target: Path, force: bool) -> None:
    """Refuse a contact sheet's name before any work is done.

    Raises:
        OutputError: no picture's ending, or the name cannot be taken.
    """
    if target.suffix.lower() not in _FORMATS:
        raise OutputError(f"cannot write {target}: a contact sheet ends in .png or .jpg")
    check_file_target(target, force)


class ContactSheet:
    """Gathers frames while they pass, in bounded memory, and writes the sheet at the end.

    How many will come is not known beforehand: every ``stride``-th is kept, small, and the stride
    doubles whenever twice as many as needed are there.
    """

    def __init__(self, target: Path, packet: bytes, *, force: bool = False) -> None:
        check_sheet_target(target, force)
        self._path = target
        self._packet = packet
        self._force = force
        self._stride = 1
        self._kept: list[tuple[int, Image.Image]] = []

    @property
    def target(self) -> str:
        """The sheet's final name."""
        return str(self._path)

    def add(self, frame: FrameLike) -> None:
        """Look at the next frame; most are passed over."""
        if frame.index % self._stride:
            return
        picture = Image.fromarray(frame.image)
        picture.thumbnail((CELL, CELL), Image.Resampling.BILINEAR, reducing_gap=2.0)
        self._kept.append((frame.index, picture))
        if len(self._kept) > 2 * COLUMNS * ROWS:
            self._kept = self._kept[::2]
            self._stride *= 2

    def write(self) -> None:
        """Write the sheet under its final name; without frames nothing is written.

        Raises:
            OutputError: it cannot be written.
        """
        if not self._kept:
            return
        save_picture(self._draw(), self._path, self._packet, force=self._force)

    def _draw(self) -> Image.Image:
        count = min(len(self._kept), COLUMNS * ROWS)
        last = len(self._kept) - 1
        chosen = [self._kept[round(i * last / max(1, count - 1))] for i in range(count)]
        width, height = chosen[0][1].size
        columns = min(COLUMNS, count)
        rows = -(-count // columns)
        sheet = Image.new(
            "RGB",
            (columns * (width + _GAP) + _GAP, rows * (height + _CAPTION + _GAP) + _GAP),
            (24, 24, 26),
        )
        draw = ImageDraw.Draw(sheet)
        font = ImageFont.load_default(14)
        for tile, (index, picture) in enumerate(chosen):
            x = _GAP + (tile % columns) * (width + _GAP)
            y = _GAP + (tile // columns) * (height + _CAPTION + _GAP)
            sheet.paste(picture, (x, y))
            caption = f"{index / FPS:.2f} s   frame {index}"
            draw.text((x + 2, y + height + 3), caption, fill=(225, 225, 225), font=font)
        return sheet


def save_picture(
    picture: Image.Image, target: Path, packet: bytes | None, *, force: bool = False
) -> None:
    """Write one picture as .png or .jpg; its name appears when it is whole.

    Args:
        picture: RGB.
        target: the final name.
        packet: the XMP packet that it carries; None for a picture that no model had a part in.
        force: replace an existing file.

    Raises:
        OutputError: it cannot be written.
    """
    check_sheet_target(target, force)
    buffer = io.BytesIO()
    if _FORMATS[target.suffix.lower()] == "PNG":
        picture.save(buffer, format="PNG", pnginfo=None if packet is None else png_info(packet))
        data = buffer.getvalue()
    else:
        picture.save(buffer, format="JPEG", quality=90)
        data = buffer.getvalue() if packet is None else jpeg_with_xmp(buffer.getvalue(), packet)
    publish_bytes(data, target, force)
