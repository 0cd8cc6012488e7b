# SPDX-License-Identifier: Apache-2.0
"""Natural idle motion of the canonical pictures: sway, nods, breathing and blinks.

The motion of every pixel follows from the head's exact geometry: the head turns about the neck
joint, the neck follows less, the shoulders only breathe. Pictures are moved by resampling, so the
loop has no rendering noise.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import cv2
import numpy as np
from geometry import F32, Geometry, load_rgba, nearest_filled
from layout import EYES, FACE_CORNER, FACE_SIDE, HEIGHT, MOUTH, WIDTH, Box
from numpy.typing import NDArray

FRAMES = 100
"""Distinct frames; played there and back they last 7.92 s."""
LIPS_Y = 89
"""Row of the lips' middle in the face square, which follows it."""
BLINK_STARTS = (17, 71)
BLINK = (0.25, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25)
"""How far the lids are closed in a blink's frames."""


@dataclass(frozen=True)
class Pose:
    """Head turn (yaw, pitch, roll in radians), shift (metres) and breath (0..1)."""

    yaw: float
    pitch: float
    roll: float
    shift: float
    breath: float


def smooth_noise(rng: np.random.RandomState, knots: int) -> NDArray[np.float64]:
    """FRAMES values in -1..1 with zero slope at both ends, so that there and back is smooth."""
    phase = np.pi * np.arange(FRAMES) / (FRAMES - 1)
    weights = rng.randn(knots) / np.sqrt(np.arange(1, knots + 1))
    curve = sum(w * np.cos(k * phase) for k, w in enumerate(weights, 1))
    out: NDArray[np.float64] = curve / np.abs(curve).max()
    return out


def poses(seed: int = 20) -> list[Pose]:
    """The loop's poses; cosines only, so its two turning points are at rest."""
    rng = np.random.RandomState(seed)
    yaw, pitch, roll, shift = (smooth_noise(rng, n) for n in (3, 4, 3, 2))
    breath = 0.5 - 0.5 * np.cos(2 * np.pi * 2 * np.arange(FRAMES) / (FRAMES - 1))
    degree = np.pi / 180
    yaw, pitch, roll = 1.9 * degree * yaw, 1.1 * degree * pitch, 0.8 * degree * roll
    curves = (yaw, pitch, roll, 0.0018 * shift, breath)
    return [Pose(*values) for values in zip(*curves, strict=True)]


def blink_levels() -> NDArray[np.float64]:
    """How far the lids are closed in each frame, 0..1."""
    out = np.zeros(FRAMES)
    for start in BLINK_STARTS:
        out[start : start + len(BLINK)] = BLINK
    return out


def rotation(pose: Pose) -> F32:
    """The head's turn as a 3 x 3 matrix: roll, then pitch, then yaw."""
    cy, cp, cr = (np.cos(angle) for angle in (pose.yaw, pose.pitch, pose.roll))
    sy, sp, sr = (np.sin(angle) for angle in (pose.yaw, pose.pitch, pose.roll))
    yaw = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return (yaw @ pitch @ roll).astype(np.float32)


class Mover:
    """Moves canonical pictures (premultiplied RGBA, whole frame) to the loop's poses.

    Attributes:
        here: Column and row of each pixel, H x W x 2.
        world: The world position (metres) that each pixel shows, H x W x 3.
        turning: How far each pixel turns with the head, from 0 (shoulders) to 1, H x W.
        joint: World position of the neck joint.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        self.here = np.stack([columns, rows], 2)
        depth = self._depth()
        across, up = self._on_rays(columns, rows, depth)
        smooth = cv2.GaussianBlur(depth, (0, 0), 3)
        self.world = np.stack([across, smooth, up], 2).astype(np.float32)
        height = np.clip((up - (geometry.cz - 0.165)) / 0.10, 0, 1)
        self.turning = (height**2 * (3 - 2 * height)).astype(np.float32)
        self.joint = np.array([0, geometry.front + 0.105, geometry.cz - 0.10], np.float32)

    def _depth(self) -> F32:
        """World y of each pixel (H x W); where no mesh lies (hair, cloth, wall), the nearest's."""
        vertices = self.geometry.vertices(np.zeros(8, np.float32))
        raster = self.geometry.raster(self.geometry.project(vertices), (0, 0, WIDTH, HEIGHT))
        world = self.geometry.points(raster, vertices)
        out: F32 = world[..., 1][nearest_filled(raster.which >= 0)]
        return out

    def _on_rays(self, columns: F32, rows: F32, depth: F32) -> tuple[F32, F32]:
        """World x and z of the points on the pixels' rays at world y ``depth``."""
        g = self.geometry
        scale_x, scale_z = self._plane_scales()
        centre = g.project(np.array([[0, g.front, g.cz]], np.float32))[0]
        eye_y, eye_z = g.front - 1.35, g.cz + 0.01  # head.py's camera
        ratio = (depth - eye_y) / (g.front - eye_y)
        x = (columns + 0.5 - centre[0]) / scale_x * ratio
        z = eye_z + ((centre[1] - rows - 0.5) / scale_z + g.cz - eye_z) * ratio
        return x, z

    def _plane_scales(self) -> tuple[float, float]:
        """Pixels per metre, across and up, at the depth of the face's front."""
        g = self.geometry
        world = [[0, g.front, g.cz], [0.1, g.front, g.cz], [0, g.front, g.cz + 0.1]]
        p = g.project(np.array(world, np.float32))
        return float((p[1, 0] - p[0, 0]) / 0.1), float((p[0, 1] - p[2, 1]) / 0.1)

    def maps(self, pose: Pose) -> tuple[F32, F32]:
        """For every output pixel, where in the canonical picture it comes from (x and y)."""
        offset = self.world - self.joint
        turned = (offset @ rotation(pose).T) - offset
        moved = self.world + turned * self.turning[..., None]
        moved[..., 0] += pose.shift * (0.35 + 0.65 * self.turning)
        moved[..., 2] += 0.0016 * pose.breath * (1 - 0.55 * self.turning)
        there, here = self.geometry.project(moved), self.geometry.project(self.world)
        flow = (there - here)[..., :2]
        source = self.here.copy()
        for _ in range(5):  # invert the flow by fixed-point iteration
            x, y = source[..., 0], source[..., 1]
            flow_there = cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            source = self.here - flow_there
        return source[..., 0].copy(), source[..., 1].copy()


def move(picture: F32, maps: tuple[F32, F32]) -> F32:
    """Resample a canonical RGBA picture (whole frame)."""
    out = cv2.remap(picture, maps[0], maps[1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(out, 0, 1)


def over(picture: F32, wall: F32) -> F32:
    """Premultiplied RGBA over an opaque RGB wall."""
    return picture[..., :3] + wall * (1 - picture[..., 3:])


class Loop:
    """The idle loop: canonical person, lids, wall, and the face square of every frame."""

    def __init__(self, work: pathlib.Path, geometry: Geometry) -> None:
        folder = work / "render"
        self.person = load_rgba(folder / "person.png")
        wall = cv2.cvtColor(cv2.imread(str(folder / "wall.png")), cv2.COLOR_BGR2RGB)
        self.wall = wall.astype(np.float32) / 255
        x0, y0, x1, y1 = EYES
        self.lids = {0.0: self.person[y0:y1, x0:x1]}
        for level in (0.25, 0.5, 0.75, 1.0):
            self.lids[level] = load_rgba(folder / f"blink-{int(100 * level):03d}.png")
        self.mover = Mover(geometry)
        self.poses, self.blinks = poses(), blink_levels()

    def canonical(self, blink: float, mouth: F32 | None = None) -> F32:
        """The whole person with lids and, if given, another picture in the mouth box."""
        out = self.person.copy()
        x0, y0, x1, y1 = EYES
        yy, xx = np.mgrid[0 : y1 - y0, 0 : x1 - x0].astype(np.float32)
        edge = np.minimum.reduce([yy, xx, y1 - y0 - 1 - yy, x1 - x0 - 1 - xx])
        soft = np.clip(edge / 12, 0, 1)[..., None]
        out[y0:y1, x0:x1] = self.lids[blink] * soft + out[y0:y1, x0:x1] * (1 - soft)
        if mouth is not None:
            x0, y0, x1, y1 = MOUTH
            out[y0:y1, x0:x1] = mouth
        return out

    def rectangle(self, maps: tuple[F32, F32]) -> Box:
        """The face square in a moved frame, whole pixels: it follows the middle of the mouth."""
        x, y = FACE_CORNER
        centre_y, centre_x = y + LIPS_Y, x + FACE_SIDE // 2
        dx = centre_x - maps[0][centre_y, centre_x]
        dy = centre_y - maps[1][centre_y, centre_x]
        left, top = x + round(float(dx)), y + round(float(dy))
        return left, top, left + FACE_SIDE, top + FACE_SIDE
