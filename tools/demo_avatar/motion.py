# SPDX-License-Identifier: Apache-2.0
"""Natural idle motion of the canonical pictures: sway, nods, breathing, brows and blinks.

The motion of every pixel follows from the head's exact geometry: the head turns about the neck
joint, the neck follows less, the shoulders only breathe. Pictures are moved by resampling, so the
loop has no rendering noise.
"""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import cv2
import numpy as np
from controls import BROWS
from geometry import F32, Geometry, load_rgba, nearest_filled
from layout import CAMERA_DISTANCE, CAMERA_RAISED, FACE_SIDE, LIPS_Y, Box
from numpy.typing import NDArray

FRAMES = 100
"""Distinct frames; played there and back they last 7.92 s."""
BLINK_STARTS = (17, 71)
BLINK = (0.25, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25)
"""How far the lids are closed in a blink's frames."""
STRESSES = ((16, 0.5), (35, 1.0), (54, 0.4), (80, 0.8))
"""Frames at which the head nods a little and the brows rise, as under a stress, and how much."""
NOD, LIFT = 1.1, 0.32
"""Degrees of the largest such nod, and the weight of the brows' actions in it."""


@dataclass(frozen=True)
class Pose:
    """Head turn (yaw, pitch, roll in radians), shift (metres), breath and raised brows (0..1)."""

    yaw: float
    pitch: float
    roll: float
    shift: float
    breath: float
    brows: float


def smooth_noise(rng: np.random.RandomState, knots: int) -> NDArray[np.float64]:
    """FRAMES values in -1..1 with zero slope at both ends, so that there and back is smooth."""
    phase = np.pi * np.arange(FRAMES) / (FRAMES - 1)
    weights = rng.randn(knots) / np.sqrt(np.arange(1, knots + 1))
    curve = sum(w * np.cos(k * phase) for k, w in enumerate(weights, 1))
    out: NDArray[np.float64] = curve / np.abs(curve).max()
    return out


def stressed(width: float, late: float = 0.0) -> NDArray[np.float64]:
    """Bumps of 0..1 at STRESSES, ``width`` frames wide; at rest at both ends of the loop."""
    frame = np.arange(FRAMES)
    return sum(much * np.exp(-(((frame - at - late) / width) ** 2)) for at, much in STRESSES)


def poses(seed: int = 20) -> list[Pose]:
    """The loop's poses; cosines only, so its two turning points are at rest."""
    rng = np.random.RandomState(seed)
    yaw, pitch, roll, shift = (smooth_noise(rng, n) for n in (3, 4, 3, 2))
    breath = 0.5 - 0.5 * np.cos(2 * np.pi * 2 * np.arange(FRAMES) / (FRAMES - 1))
    degree = np.pi / 180
    yaw, pitch, roll = 1.9 * degree * yaw, 1.1 * degree * pitch, 0.8 * degree * roll
    pitch = pitch + NOD * degree * (stressed(4.5) - 0.5 * stressed(6.0, 7.0))
    curves = (yaw, pitch, roll, 0.0018 * shift, breath, LIFT * stressed(5.5, -1.0))
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
        brows: Where each pixel's point goes when the brows are raised, H x W x 3 metres.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        height, width = geometry.layout.height, geometry.layout.width
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        self.here = np.stack([columns, rows], 2)
        depth, self.brows = self._depth()
        across, up = self._on_rays(columns, rows, depth)
        smooth = cv2.GaussianBlur(depth, (0, 0), 3)
        self.world = np.stack([across, smooth, up], 2).astype(np.float32)
        share = np.clip((up - (geometry.cz - 0.165)) / 0.10, 0, 1)
        self.turning = (share**2 * (3 - 2 * share)).astype(np.float32)
        self.joint = np.array([0, geometry.front + 0.105, geometry.cz - 0.10], np.float32)

    def _depth(self) -> tuple[F32, F32]:
        """World y of each pixel (H x W) and the brows' motion (H x W x 3).

        Where no mesh lies (hair, cloth, wall), the nearest point's depth, and no motion.
        """
        g = self.geometry
        vertices = g.vertices(np.zeros(8, np.float32))
        box = (0, 0, g.layout.width, g.layout.height)
        raster = g.raster(g.project(vertices), box)
        there = raster.which >= 0
        world = g.points(raster, vertices)
        lifts = sum(g.deltas[g.actions.index(name)] for name in BROWS)
        lifted = g.points(raster, lifts) * there[..., None]
        depth: F32 = world[..., 1][nearest_filled(there)]
        return depth, cv2.GaussianBlur(lifted, (0, 0), 2.5)

    def _on_rays(self, columns: F32, rows: F32, depth: F32) -> tuple[F32, F32]:
        """World x and z of the points on the pixels' rays at world y ``depth``."""
        g = self.geometry
        scale_x, scale_z = self._plane_scales()
        centre = g.project(np.array([[0, g.front, g.cz]], np.float32))[0]
        eye_y, eye_z = g.front - CAMERA_DISTANCE, g.cz + CAMERA_RAISED
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
        lifted = self.world + pose.brows * self.brows
        offset = lifted - self.joint
        turned = (offset @ rotation(pose).T) - offset
        moved = lifted + turned * self.turning[..., None]
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


class Motion:
    """Where the head is in every frame of the idle loop; needs no pictures."""

    def __init__(self, geometry: Geometry) -> None:
        self.layout = geometry.layout
        self.mover, self.poses = Mover(geometry), poses()

    def rectangle(self, maps: tuple[F32, F32]) -> Box:
        """The face square in a moved frame, whole pixels: it follows the middle of the mouth."""
        x, y = self.layout.face_corner
        centre_y, centre_x = y + LIPS_Y, x + FACE_SIDE // 2
        dx = centre_x - maps[0][centre_y, centre_x]
        dy = centre_y - maps[1][centre_y, centre_x]
        left, top = x + round(float(dx)), y + round(float(dy))
        return left, top, left + FACE_SIDE, top + FACE_SIDE


class Loop(Motion):
    """The idle loop: canonical person, lids, wall, and the face square of every frame."""

    def __init__(self, work: pathlib.Path, geometry: Geometry) -> None:
        super().__init__(geometry)
        folder = work / "render"
        self.person = load_rgba(folder / "person.png")
        wall = cv2.cvtColor(cv2.imread(str(folder / "wall.png")), cv2.COLOR_BGR2RGB)
        self.wall = wall.astype(np.float32) / 255
        x0, y0, x1, y1 = self.layout.eyes
        self.lids = {0.0: self.person[y0:y1, x0:x1]}
        for level in (0.25, 0.5, 0.75, 1.0):
            self.lids[level] = load_rgba(folder / f"blink-{int(100 * level):03d}.png")
        self.blinks = blink_levels()

    def canonical(self, blink: float, mouth: F32 | None = None) -> F32:
        """The whole person with lids and, if given, another picture in the mouth box."""
        out = self.person.copy()
        x0, y0, x1, y1 = self.layout.eyes
        yy, xx = np.mgrid[0 : y1 - y0, 0 : x1 - x0].astype(np.float32)
        edge = np.minimum.reduce([yy, xx, y1 - y0 - 1 - yy, x1 - x0 - 1 - xx])
        soft = np.clip(edge / 12, 0, 1)[..., None]
        out[y0:y1, x0:x1] = self.lids[blink] * soft + out[y0:y1, x0:x1] * (1 - soft)
        if mouth is not None:
            x0, y0, x1, y1 = self.layout.mouth
            out[y0:y1, x0:x1] = mouth
        return out
