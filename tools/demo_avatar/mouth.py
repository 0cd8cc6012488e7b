# SPDX-License-Identifier: Apache-2.0
"""Teeth and gums, one by one, along the dental arches of MakeHuman's mesh; and the tongue's tip.

MakeHuman's own teeth are a smooth band. Here each tooth is a rounded box of its own width, which
narrows at the gum; the band only says where they stand and how they move. Decimetres, y up, z to
the front, as in the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

UPPER = (0.086, 0.068, 0.078, 0.070, 0.066, 0.100)
LOWER = (0.054, 0.060, 0.068, 0.070, 0.070, 0.108)
"""Widths of the teeth of one side from the middle outwards."""
LENGTHS = (1.0, 0.90, 0.98, 0.82, 0.74, 0.66)
"""How long each is, as parts of the first."""
POINTED = (0.0, 0.05, 0.30, 0.25, 0.10, 0.0)
"""How far each tooth's edge comes to a point."""
ROWS, AROUND = 9, 20
"""Rings of a tooth from gum to edge, and points of a ring."""


@dataclass
class Surface:
    """A mesh of its own that follows some of the base mesh's vertices.

    Attributes:
        vertices: V x 3, around the neutral face.
        faces: Vertex numbers of each face.
        weights: V x K; by which sum of the K followed vertices' displacements each moves.
        followed: K vertex numbers of the base mesh.
    """

    vertices: Points
    faces: list[list[int]]
    weights: Points
    followed: NDArray[np.int64]

    def moved(self, displacement: Points) -> Points:
        """Its vertices when the base mesh's vertices are displaced (all of them, N x 3)."""
        out: Points = self.vertices + self.weights @ displacement[self.followed]
        return out


def follow(points: Points, band: Points, nearest: int = 6) -> Points:
    """Weights (V x K) by which points follow the nearest vertices of a band (K x 3)."""
    distance = np.linalg.norm(points[:, None] - band[None], axis=2)
    weights = 1 / (distance + 0.02) ** 2
    weights[distance > np.sort(distance, axis=1)[:, nearest - 1 : nearest]] = 0
    out: Points = weights / weights.sum(1, keepdims=True)
    return out


class Arch:
    """The outer curve of a row of teeth, seen from above, by its length from the middle."""

    def __init__(self, band: Points) -> None:
        """``band``: the vertices (K x 3) of MakeHuman's row of teeth."""
        half = band[band[:, 0] >= -1e-6]
        back = half[:, 2].min() + 0.12
        radius, turn = (
            np.hypot(half[:, 0], half[:, 2] - back),
            np.arctan2(half[:, 0], half[:, 2] - back),
        )
        edges = np.linspace(-0.01, np.pi / 2, 9)
        best = [
            np.nonzero(inside)[0][np.argmax(radius[inside])]
            for low, high in pairwise(edges)
            if (inside := (turn >= low) & (turn < high)).any()
        ]
        powers = np.stack([turn[best] ** k for k in (0, 2, 4)], 1)
        fit = np.linalg.lstsq(powers, radius[best], rcond=None)[0]
        angle = np.linspace(0, np.pi / 2, 40)
        reach = fit @ np.stack([angle**k for k in (0, 2, 4)])
        x, z = reach * np.sin(angle), back + reach * np.cos(angle)
        self._x, self._z = x, z
        self._along = np.r_[0, np.cumsum(np.hypot(np.diff(x), np.diff(z)))]

    def at(self, along: float) -> tuple[Points, Points, Points]:
        """Place, tangent (to +x) and outward normal at a signed length from the middle."""
        side = np.sign(along) or 1.0

        def place(length: float) -> Points:
            x, z = (np.interp(abs(length), self._along, values) for values in (self._x, self._z))
            return np.array([x if length > 0 else -x, 0.0, z])

        length = min(abs(along), self._along[-1] - 0.01)
        here = place(length)
        tangent = place(length + 0.01) - place(length - 0.01)
        tangent /= np.linalg.norm(tangent)
        normal = np.array([-tangent[2], 0.0, tangent[0]])
        mirror = np.array([side, 1.0, 1.0])
        return here * mirror, tangent * np.array([1.0, 1.0, side]), normal * mirror


def _tooth(
    width: float, length: float, point: float, thick: float
) -> tuple[Points, list[list[int]]]:
    """A tooth in its own frame: x along the arch, y 0 at the edge to ``length``, z outwards (0)."""
    rows = []
    angle = np.linspace(0, 2 * np.pi, AROUND, endpoint=False)
    c, s = np.cos(angle), np.sin(angle)
    for t in np.linspace(1.12, 0.0, ROWS):  # from inside the gum to the edge
        half = 0.5 * width * (0.985 - 0.20 * np.clip(t - 0.35, 0, 1) ** 1.3)
        deep = 0.5 * thick * (0.36 + 0.64 * min(1.0, 1.25 * t) ** 0.8)
        round_off = 1.0 if t > 0.10 else 0.90 + 1.0 * t
        power = 0.55
        x = np.sign(c) * np.abs(c) ** power * half * round_off
        z = np.sign(s) * np.abs(s) ** power * deep
        bulge = 0.010 * np.sin(np.pi * np.clip(t, 0, 1)) - 0.012 * (1 - t) * (t < 0.4)
        y = np.full_like(x, t * length) + point * length * 0.35 * (1 - t) * np.abs(x / width)
        y = y + 0.25 * length * (1 - t) * (np.abs(2 * x / width)) ** 6 * 0.25
        rows.append(np.stack([x, y, z - 0.5 * thick + bulge], 1))
    vertices = np.concatenate([*rows, rows[-1].mean(0, keepdims=True)])
    faces = []
    for r in range(ROWS - 1):
        for k in range(AROUND):
            n = (k + 1) % AROUND
            faces.append(
                [r * AROUND + k, (r + 1) * AROUND + k, (r + 1) * AROUND + n, r * AROUND + n]
            )
    last, cap = (ROWS - 1) * AROUND, ROWS * AROUND
    faces += [[last + k, cap, last + (k + 1) % AROUND] for k in range(AROUND)]
    return vertices, faces


def teeth(
    band: Points, followed: NDArray[np.int64], edge_y: float, upper: bool, seed: int
) -> Surface:
    """A row of twelve teeth whose cutting edges lie at height ``edge_y``."""
    rng = np.random.RandomState(seed)
    arch, widths = Arch(band), UPPER if upper else LOWER
    up = 1.0 if upper else -1.0
    first = 0.100 if upper else 0.088
    thick = 0.062 if upper else 0.058
    back = 0.004 if upper else 0.016
    vertices: list[Points] = []
    faces: list[list[int]] = []
    for side in (1, -1):
        along = 0.0
        for k, width in enumerate(widths):
            place, tangent, normal = arch.at(side * (along + width / 2))
            along += width
            local, own = _tooth(
                width * 0.985, first * LENGTHS[k], POINTED[k] if upper else POINTED[k] / 2, thick
            )
            lean = 0.10 if upper else 0.02
            local = local * (1 + 0.02 * rng.randn(3))
            tilt, turn = 0.02 * rng.randn(2)
            place = place - normal * back
            x = local[:, 0] + tilt * local[:, 1]
            z = local[:, 2] + turn * local[:, 0] - lean * local[:, 1]
            y = edge_y + up * (local[:, 1] + (0.006 if k == 1 else 0.0) + 0.003 * rng.rand())
            placed = place + x[:, None] * tangent + z[:, None] * normal
            placed[:, 1] = y
            start = sum(map(len, vertices))
            vertices.append(placed)
            mirrored = (side < 0) != (up < 0)
            faces += [[start + i for i in (f[::-1] if mirrored else f)] for f in own]
    points = np.concatenate(vertices)
    return Surface(points, faces, follow(points, band), followed)


def gum(band: Points, followed: NDArray[np.int64], edge_y: float, upper: bool) -> Surface:
    """The gum: a swell along the arch that ends at the necks of the teeth."""
    arch, widths = Arch(band), UPPER if upper else LOWER
    up, neck, swell = (1.0, 0.086, 0.060) if upper else (-1.0, 0.076, 0.045)
    total, count = sum(widths), 97
    borders = np.cumsum((0.0, *widths))
    rings = []
    for along in np.linspace(-total, total, count):
        place, _, normal = arch.at(along if along else 1e-6)
        k = min(len(widths) - 1, int(np.searchsorted(borders, abs(along), "right")) - 1)
        t = (abs(along) - borders[k]) / widths[k]
        scallop = 0.022 * (2 * abs(t - 0.5)) ** 1.6  # it reaches farther between two teeth
        height = neck * LENGTHS[k] + 0.012 - scallop
        angle = np.linspace(-0.55 * np.pi, 1.05 * np.pi, 11)
        out = (0.003 if upper else -0.010) + 0.022 * np.cos(angle) - 0.012
        rise = height + swell + swell * np.sin(angle)
        out = np.where(np.sin(angle) < -0.5, out - 0.020, out)
        ring = place + out[:, None] * normal
        ring[:, 1] = edge_y + up * rise
        rings.append(ring)
    points, n = np.concatenate(rings), len(rings[0])
    faces = []
    for i in range(count - 1):
        for k in range(n - 1):
            face = [i * n + k, (i + 1) * n + k, (i + 1) * n + k + 1, i * n + k + 1]
            faces.append(face if upper else face[::-1])
    return Surface(points, faces, follow(points, band), followed)


def raised_tongue(tongue: Points) -> Points:
    """Displacements (V x 3) that lift the tongue's tip to the upper teeth and make it slender."""
    back, front = tongue[:, 2].min(), tongue[:, 2].max()
    t = np.clip((tongue[:, 2] - back) / (front - back), 0, 1)
    rise = 0.045 * np.clip((t - 0.30) / 0.70, 0, 1) ** 1.6
    middle = np.median(tongue[:, 1][t > 0.6])
    flat = -0.35 * (tongue[:, 1] - middle) * np.clip((t - 0.6) / 0.4, 0, 1)
    narrow = -0.18 * tongue[:, 0] * np.clip((t - 0.55) / 0.45, 0, 1)
    return np.stack([narrow, rise + flat, 0.05 * t**2], 1)
