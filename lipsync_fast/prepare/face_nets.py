# SPDX-License-Identifier: Apache-2.0
"""The nets that find faces and their 468 points, run by ONNX Runtime alone.

Two nets find faces, one in the whole picture (192 x 192, faces of any size) and one of faces that
are near (128 x 128); a third lays a mesh of 468 points over a face in an upright square (192 x
192). They are MediaPipe's, as plain ONNX: tools/face_nets/convert.py made them, and says from what.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from lipsync_fast.arrays import F32

POINTS = 468
MESH_SIDE = 192
SURE = 0.5
"""From this probability on something is a face."""
AROUND = 1.5
"""The mesh's square is so many times as large as the face that was found, or the last mesh."""
NEAR = 0.35
"""Finds whose middles lie so near to each other, in sides of the face, are of one face."""
RIGHT_EYE, LEFT_EYE = 33, 263
"""Outer corners, as the person has them."""


@dataclass(frozen=True)
class Square:
    """A square that may be turned, in pixels of the picture.

    Attributes:
        x, y: of its middle.
        side: its length.
        angle: by which the face in it is turned clockwise, radians.
    """

    x: float
    y: float
    side: float
    angle: float


@dataclass(frozen=True)
class Found:
    """A face that was found.

    Attributes:
        square: where the mesh is to be laid.
        sure: from 0 to 1.
    """

    square: Square
    sure: float


@dataclass(frozen=True)
class _Finder:
    """One of the two nets that find faces."""

    session: ort.InferenceSession
    side: int
    anchors: F32  # A x 2: x, y of each anchor's middle, 0 to 1

    def find(self, picture: Image.Image) -> list[Found]:
        """Faces in a picture, the largest first."""
        width, height = picture.size
        longest, side = max(width, height), self.side
        size = max(1, round(width * side / longest)), max(1, round(height * side / longest))
        left, top = (side - size[0]) // 2, (side - size[1]) // 2
        square = np.zeros((1, side, side, 3), np.float32)
        small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        square[0, top : top + size[1], left : left + size[0]] = np.asarray(small) / 127.5 - 1
        boxes, scores = self.session.run(None, {"input": square})
        sure = 1 / (1 + np.exp(-np.clip(scores[0, :, 0], -50, 50)))
        places = boxes[0].reshape(len(self.anchors), 8, 2) / side
        places[:, 0] += self.anchors
        places[:, 2:] += self.anchors[:, None]
        places *= longest
        places[:, 0] -= np.array([left, top]) * longest / side
        places[:, 2:] -= np.array([left, top]) * longest / side
        return sorted(_merged(places, sure), key=lambda face: -face.square.side)


def _merged(places: F32, sure: F32) -> list[Found]:
    """One face of all finds that lie on each other: their mean, the surer the heavier.

    Args:
        places: A x 8 x 2: middle, size, right eye, left eye and four more, in pixels.
        sure: A.
    """
    left = np.flatnonzero(sure >= SURE)
    found = []
    while len(left):
        best = left[np.argmax(sure[left])]
        side = places[best, 1].max()
        apart = np.abs(places[left, 0] - places[best, 0]).max(axis=1)
        same = apart < NEAR * np.maximum(places[left, 1].max(axis=1), side)
        weights = sure[left[same]]
        middle, size, right, left_eye = np.average(places[left[same], :4], axis=0, weights=weights)
        angle = float(np.arctan2(left_eye[1] - right[1], left_eye[0] - right[0]))
        x, y = map(float, middle)
        square = Square(x, y, AROUND * float(size.max()), angle)
        found.append(Found(square, float(sure[best])))
        left = left[~same]
    return found


def _near_anchors() -> F32:
    """The net for near faces: a grid of 16 x 16 with 2 anchors a cell, one of 8 x 8 with 6."""
    grids = [_grid(16).repeat(2, axis=0), _grid(8).repeat(6, axis=0)]
    return np.concatenate(grids)


def _grid(cells: int) -> F32:
    y, x = np.divmod(np.arange(cells * cells), cells)
    return ((np.stack([x, y], axis=1) + 0.5) / cells).astype(np.float32)


class FaceNets:
    """Finds faces and lays the mesh; each picture by itself.

    Args:
        threads: of ONNX Runtime, for one picture.
    """

    def __init__(self, threads: int = 1) -> None:
        full, near = _session("detect_full", threads), _session("detect_short", threads)
        self._finders = (_Finder(full, 192, _grid(48)), _Finder(near, 128, _near_anchors()))
        self._mesh = _session("mesh", threads)

    def faces(self, picture: Image.Image) -> Iterator[list[Found]]:
        """Faces in an RGB picture, the largest first: of each net in turn that finds any.

        That for near faces runs only when it is asked for.
        """
        return filter(None, (finder.find(picture) for finder in self._finders))

    def mesh(self, picture: Image.Image, square: Square) -> tuple[F32, float]:
        """The mesh in a square.

        Returns:
            468 x 2 float32, x and y in pixels of the picture; and how sure it is that this is a
            face, 0 to 1.
        """
        to_picture, offset = _placed(square)
        crop = _cut(picture, to_picture, offset)
        points, presence = self._mesh.run(None, {"input": np.asarray(crop, np.float32)[None] / 255})
        flat = points.reshape(POINTS, 3)[:, :2].astype(np.float64)
        sure = 1 / (1 + np.exp(-float(np.clip(presence.ravel()[0], -50, 50))))
        return (flat @ to_picture.T + offset).astype(np.float32), sure


def square_of(points: F32) -> Square:
    """The square for the next picture's mesh, from this one's (468 x 2)."""
    across = points[LEFT_EYE] - points[RIGHT_EYE]
    angle = float(np.arctan2(across[1], across[0]))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    upright = points @ turn.T
    low, high = upright.min(axis=0), upright.max(axis=0)
    middle = (low + high) / 2 @ turn
    return Square(float(middle[0]), float(middle[1]), AROUND * float((high - low).max()), angle)


def _placed(square: Square) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From the mesh's 192 x 192 pixels to the picture's: a matrix and what is added."""
    scale = square.side / MESH_SIDE
    along, across = np.cos(square.angle) * scale, np.sin(square.angle) * scale
    matrix = np.array([[along, -across], [across, along]])
    return matrix, np.array([square.x, square.y]) - matrix @ np.full(2, MESH_SIDE / 2)


def _cut(
    picture: Image.Image, matrix: NDArray[np.float64], offset: NDArray[np.float64]
) -> Image.Image:
    """The square as 192 x 192 pixels; what lies outside the picture is black."""
    corners = np.array([[0, 0], [MESH_SIDE, 0], [0, MESH_SIDE], [MESH_SIDE, MESH_SIDE]])
    seen = corners @ matrix.T + offset
    x1, y1 = np.maximum(np.floor(seen.min(axis=0)).astype(int) - 1, 0)
    x2, y2 = np.minimum(np.ceil(seen.max(axis=0)).astype(int) + 1, picture.size)
    if x2 <= x1 or y2 <= y1:
        return Image.new("RGB", (MESH_SIDE, MESH_SIDE))
    # A transformation takes single pixels: what is much larger is first made smaller, by means.
    by = max(1, int(np.hypot(*matrix[:, 0])))
    part = picture.crop((x1, y1, x2, y2))
    part, matrix, offset = (part.reduce(by) if by > 1 else part), matrix / by, offset - (x1, y1)
    offset = offset / by
    (a, b), (c, d) = matrix
    return part.transform(
        (MESH_SIDE, MESH_SIDE),
        Image.Transform.AFFINE,
        (a, b, offset[0], c, d, offset[1]),
        Image.Resampling.BILINEAR,
    )


def _session(name: str, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(_net(name), options, providers=["CPUExecutionProvider"])


@functools.cache
def _net(name: str) -> bytes:
    return files("lipsync_fast").joinpath("data", "faces", f"{name}.onnx").read_bytes()
