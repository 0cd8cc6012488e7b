# SPDX-License-Identifier: Apache-2.0
"""Where things are in a demo person's pictures. Boxes are x0, y0, x1, y1 in pixels.

The face has the same size in every layout, so that the networks' settings suit all people.
"""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int, int]

FACE_SIDE = 264
"""Side of the square that the U-Net is given, with a border of 4 pixels around its region."""
LIPS_Y = 89
"""Row of the lips' middle in the face square, which follows it."""
SPARE = 32
"""Pixels around the face square that a moved head may bring into it."""
CAMERA_DISTANCE, CAMERA_RAISED = 1.35, 0.01
"""Metres from the lens to the front of the face, and of the lens above the eyes."""


@dataclass(frozen=True)
class Layout:
    """One person's pictures.

    Attributes:
        width, height: Of the whole picture.
        eyes_row: The row of the eyes' middle.
        lips_row: The row of the closed lips' middle.
        scale: Pixels per metre at the depth of the face between the eyes.
    """

    width: int
    height: int
    eyes_row: int
    lips_row: int
    scale: float = 2180.0

    @property
    def face_corner(self) -> tuple[int, int]:
        """The face square's left upper corner; in a frame of the loop it follows the head."""
        return self.width // 2 - FACE_SIDE // 2, self.lips_row - LIPS_Y

    @property
    def mouth(self) -> Box:
        """Part of the picture that speech can change: the rendered mouth pictures' place."""
        x, y = self.face_corner
        return x, y, x + FACE_SIDE, y + FACE_SIDE

    @property
    def lips(self) -> tuple[int, int]:
        """The middle of the closed lips, x and y."""
        return self.width // 2, self.lips_row

    @property
    def eyes(self) -> Box:
        """Part of the picture that blinks can change."""
        middle = self.width // 2
        return middle - 124, self.eyes_row - 76, middle + 124, self.eyes_row + 52

    @property
    def window(self) -> Box:
        """Part of the picture that a face square can show, wherever the head is."""
        x0, y0, x1, y1 = self.mouth
        return x0 - SPARE, y0 - SPARE, x1 + SPARE, y1 + SPARE

    @property
    def mouth_in_window(self) -> tuple[slice, slice]:
        """Rows and columns of the window's pictures that the mouth box takes."""
        taken = slice(SPARE, SPARE + FACE_SIDE)
        return taken, taken


LANDSCAPE = Layout(width=1280, height=720, eyes_row=292, lips_row=421)
PORTRAIT = Layout(width=720, height=1280, eyes_row=470, lips_row=608)
