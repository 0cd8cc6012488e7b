# SPDX-License-Identifier: Apache-2.0
"""Where things are in the demo person's pictures. Boxes are x0, y0, x1, y1 in pixels."""

from __future__ import annotations

Box = tuple[int, int, int, int]

WIDTH, HEIGHT = 1280, 720
MOUTH: Box = (508, 276, 772, 512)
"""Part of the canonical picture that speech can change: the rendered mouth pictures' place."""
EYES: Box = (540, 180, 740, 300)
"""Part of the canonical picture that blinks can change."""
FACE_SIDE = 264
"""Side of the square that the U-Net is given, with a border of 4 pixels around its region."""
FACE_CORNER = (508, 276)
"""The face square's left upper corner at the canonical position; in a frame it follows the head."""
WINDOW: Box = (476, 244, 804, 572)
"""Part of the canonical picture that a face square can show, wherever the head is."""
