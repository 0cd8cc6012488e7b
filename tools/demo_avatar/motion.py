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
from geometry import HEIGHT, MOUTH, WIDTH, Geometry, load_rgba, nearest_filled
from numpy.typing import NDArray

F32 = NDArray[np.float32]
FRAMES = 100
"""Distinct frames; played there and back they last 7.92 s."""
CROP = (508, 276, 264)
"""The face square at the canonical position: x, y, side in pixels."""
EYES = (540, 180, 740, 300)
BLINK_STARTS = (17, 71)
BLINK = (0.25, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Pose:
    """Head turn (yaw, pitch, roll in radians), shift (metres) and breath (0..1)."""

    yaw: float
    pitch: float
    roll: float
    shift: float
    breath: float


def smooth_noise(rng: np.random.RandomState, knots: int) -> NDArray[np.float64]:
    """FRAMES values in about -1..1 with zero slope at both ends (so that there-and-back is smooth)."""
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
    return [
        Pose(1.9 * degree * yaw[i], 1.1 * degree * pitch[i], 0.8 * degree * roll[i], 0.0018 * shift[i], breath[i])
        for i in range(FRAMES)
    ]


def blink_levels() -> NDArray[np.float64]:
    """How far the lids are closed in each frame, 0..1."""
    out = np.zeros(FRAMES)
    for start in BLINK_STARTS:
        out[start : start + len(BLINK)] = BLINK
    return out


class Mover:
    """Moves canonical pictures (premultiplied RGBA, whole frame) to the loop's poses."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        projected = geometry.project(geometry.vertices(np.zeros(8, np.float32)))
        raster = geometry.raster(projected, (0, 0, WIDTH, HEIGHT))
        valid = raster.which >= 0
        world = geometry.points(raster, geometry.vertices(np.zeros(8, np.float32)))
        rows, columns = nearest_filled(valid)
        depth = world[..., 1][rows, columns]
        # Where no mesh lies (hair, cloth, wall): the pixel's own ray at the nearest mesh depth.
        yy, xx = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
        scale_x, scale_z = self._plane_scales()
        centre = geometry.project(np.array([[0, geometry.front, geometry.cz]], np.float32))[0]
        eye_y = geometry.front - 1.35
        ratio = (depth - eye_y) / (geometry.front - eye_y)
        x = (xx + 0.5 - centre[0]) / scale_x * ratio
        eye_z = geometry.cz + 0.01
        z = eye_z + ((centre[1] - yy - 0.5) / scale_z + geometry.cz - eye_z) * ratio
        self.world = np.stack([x, cv2.GaussianBlur(depth, (0, 0), 3), z], 2).astype(np.float32)
        self.here = np.stack([xx, yy], 2)
        height = z - (geometry.cz - 0.165)
        self.turning = np.clip(height / 0.10, 0, 1)
        self.turning = (self.turning**2 * (3 - 2 * self.turning)).astype(np.float32)
        self.joint = np.array([0, geometry.front + 0.105, geometry.cz - 0.10], np.float32)

    def _plane_scales(self) -> tuple[float, float]:
        """Pixels per metre, across and up, at the depth of the face's front."""
        g = self.geometry
        p = g.project(np.array([[0, g.front, g.cz], [0.1, g.front, g.cz], [0, g.front, g.cz + 0.1]], np.float32))
        return float((p[1, 0] - p[0, 0]) / 0.1), float((p[0, 1] - p[2, 1]) / 0.1)

    def maps(self, pose: Pose) -> tuple[F32, F32]:
        """For every output pixel, where in the canonical picture it comes from (x and y)."""
        cy, sy, cp, sp, cr, sr = (f(a) for a in (pose.yaw, pose.pitch, pose.roll) for f in (np.cos, np.sin))
        turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        turn = (turn @ np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])).astype(np.float32)
        offset = self.world - self.joint
        moved = self.world + ((offset @ turn.T) - offset) * self.turning[..., None]
        moved[..., 0] += pose.shift * (0.35 + 0.65 * self.turning)
        moved[..., 2] += 0.0016 * pose.breath * (1 - 0.55 * self.turning)
        there, here = self.geometry.project(moved), self.geometry.project(self.world)
        flow = (there - here)[..., :2]
        source = self.here.copy()
        for _ in range(5):  # invert the flow by fixed-point iteration
            flow_there = cv2.remap(flow, source[..., 0], source[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
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
        self.wall = cv2.cvtColor(cv2.imread(str(folder / "wall.png")), cv2.COLOR_BGR2RGB).astype(np.float32) / 255
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

    def rectangle(self, maps: tuple[F32, F32]) -> tuple[int, int, int, int]:
        """The face square in a moved frame, whole pixels: it follows the middle of the mouth."""
        x, y, side = CROP
        centre_y, centre_x = y + 89, x + side // 2
        dx = centre_x - maps[0][centre_y, centre_x]
        dy = centre_y - maps[1][centre_y, centre_x]
        left, top = x + round(float(dx)), y + round(float(dy))
        return left, top, left + side, top + side
