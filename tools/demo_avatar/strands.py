# SPDX-License-Identifier: Apache-2.0
"""The head's hair and brows: strands grown over the skull, as arrays of points.

Metres, z up, the face looks to -y, x to its left. A strand is P x 3 points from root to tip.
"""

from __future__ import annotations

from dataclasses import dataclass

import mathutils
import numpy as np
from mathutils.bvhtree import BVHTree
from mathutils.kdtree import KDTree
from numpy.typing import NDArray

Points = NDArray[np.float64]

GUIDES, STRANDS, BUN_STRANDS, BROW_HAIRS = 700, 26_000, 2_500, 420
POINTS = 20
"""Points of a hair strand."""
STEPS = 26
"""Steps in which a guide strand is grown at most."""


@dataclass(frozen=True)
class Face:
    """Where the face is: the height of the eyes, and the y of its foremost points between them."""

    eye_z: float
    front_y: float


class Skull:
    """The skin without the ears, for questions about where strands may go."""

    def __init__(self, vertices: Points, faces: list[list[int]]) -> None:
        """``vertices`` V x 3, ``faces`` with four vertices each."""
        self._tree = BVHTree.FromPolygons(vertices.tolist(), faces)
        halves = [half for f in faces for half in ((f[0], f[1], f[2]), (f[0], f[2], f[3]))]
        self.triangles: Points = vertices[np.array(halves)]

    def nearest(self, point: Points) -> tuple[Points, Points, float]:
        """The nearest skin point, its normal, and ``point``'s distance (negative: inside)."""
        place, normal, _, _ = self._tree.find_nearest(mathutils.Vector(point))
        place, normal = np.array(place), np.array(normal)
        return place, normal, float(np.dot(point - place, normal))

    def from_front(self, x: float, y: float, z: float) -> tuple[Points, Points]:
        """The first skin point and its normal on the way backwards from (x, y, z)."""
        start, backwards = mathutils.Vector((x, y, z)), mathutils.Vector((0, 1, 0))
        place, normal, _, _ = self._tree.ray_cast(start, backwards)
        return np.array(place), np.array(normal)


class Hairdresser:
    """Grows a head of hair, combed back into a bun, and the brows."""

    def __init__(self, skull: Skull, face: Face, rng: np.random.RandomState) -> None:
        self.skull, self.face, self.rng = skull, face, rng
        self.knot = np.array([0, face.front_y + 0.215, face.eye_z + 0.015])
        """Where all strands meet."""

    def hair(self) -> list[Points]:
        """Strands between the guides, then those of the bun."""
        roots, guides = self._guides()
        lookup = KDTree(len(roots))
        for number, root in enumerate(roots):
            lookup.insert(mathutils.Vector(root), number)
        lookup.balance()
        shapes = [guide - root for guide, root in zip(guides, roots, strict=True)]
        strands = [self._between(root, shapes, lookup) for root in self._roots(STRANDS)]
        return strands + [self._bun_strand() for _ in range(BUN_STRANDS)]

    def brows(self) -> list[Points]:
        """The hairs of both brows."""
        return [self._brow_hair(side) for side in (1, -1) for _ in range(BROW_HAIRS)]

    # ------------------------------------------------------------ where hair grows
    def _roots(self, count: int) -> Points:
        """Random points of the skull above the hairline, count x 3."""
        a, b, c = self.skull.triangles[:, 0], self.skull.triangles[:, 1], self.skull.triangles[:, 2]
        areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        found: list[Points] = []
        while sum(map(len, found)) < count:
            t = self.rng.choice(len(areas), count * 3, p=areas / areas.sum())
            u = self.rng.rand(count * 3, 2)
            u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)
            points = a[t] + (b[t] - a[t]) * u[:, :1] + (c[t] - a[t]) * u[:, 1:]
            points = points[points[:, 2] > self.face.eye_z - 0.08]
            ragged = points[:, 2] - self.rng.randn(len(points)) * 0.0034
            found.append(points[ragged > self._hairline(points)])
        return np.concatenate(found)[:count]

    def _hairline(self, points: Points) -> NDArray[np.float64]:
        """The height above which hair grows, at each point's distance from the middle and front."""
        eye_z = self.face.eye_z
        aside, behind = abs(points[:, 0]), points[:, 1] - self.face.front_y
        # The forehead, falling towards the temples; then down to the ear, behind it, and the nape.
        line = eye_z + 0.071 - 2.0 * np.maximum(0, aside - 0.030)
        temple = np.minimum(line, eye_z + 0.030 - (behind - 0.055) * 1.6)
        line = np.where(behind > 0.055, temple, line)
        line = np.where(behind > 0.105, eye_z - 0.010 - (behind - 0.105) * 1.3, line)
        return np.where(behind > 0.150, eye_z - 0.075, line)

    # ------------------------------------------------------------ hair
    def _guides(self) -> tuple[Points, list[Points]]:
        """Roots (GUIDES x 3) and guide strands, POINTS points at equal distances each."""
        roots = self._roots(GUIDES)
        layers = 0.003 + 0.006 * self.rng.rand(GUIDES)
        guides = []
        for root, layer in zip(roots, layers, strict=True):
            path = self._combed(root, layer)
            along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))]
            even = np.linspace(0, along[-1], POINTS)
            guides.append(np.stack([np.interp(even, along, path[:, k]) for k in range(3)], 1))
        return roots, guides

    def _combed(self, root: Points, layer: float) -> Points:
        """One strand combed back over the skull to the knot, ``layer`` metres off the skin."""
        _, normal, _ = self.skull.nearest(root)
        if root[1] - self.face.front_y < 0.06:  # above the forehead: up, back and to its side
            parting = 1 if root[0] >= -0.012 else -1
            heading = normal * 0.5 + np.array([0.25 * parting, 0.3, 0.5])
        else:
            heading = normal * 0.4 + np.array([0, 0.6, 0.1])
        heading /= np.linalg.norm(heading)
        stride = (np.linalg.norm(self.knot - root) + 0.03) / STEPS * 1.05
        place = np.array(root)
        path = [place]
        for i in range(STEPS):
            wanted = self.knot - place
            far = np.linalg.norm(wanted)
            if far < 0.018:
                break
            heading = 0.72 * heading + 0.28 * wanted / far
            _, normal, height = self.skull.nearest(place)
            if height < layer * 1.2:  # do not dive into the skin
                heading -= normal * min(0, np.dot(heading, normal))
            if height > layer * 1.5 and i > 3:  # lie down
                heading -= normal * 0.10
            heading /= np.linalg.norm(heading)
            place = place + heading * stride
            skin, normal, height = self.skull.nearest(place)
            least = layer * min(1, (i + 1) / 5)
            if height < least:
                place = skin + normal * least
            path.append(place)
        return np.array(path)

    def _between(self, root: Points, shapes: list[Points], lookup: KDTree) -> Points:
        """A strand like its three nearest guides and, half of it, like one of them.

        The second half makes locks. A little waviness is added, and one strand in 80 flies away.
        """
        rng = self.rng
        t = np.linspace(0, 1, POINTS)[:, None]
        near = lookup.find_n(mathutils.Vector(root), 3)
        weights = np.array([1 / (distance + 1e-4) for _, _, distance in near])
        weights /= weights.sum()
        average = 0.5 * sum(w * shapes[g] for w, (_, g, _) in zip(weights, near, strict=True))
        lock = near[rng.randint(3) if rng.rand() < 0.5 else 0][1]
        wave = rng.randn(1, 3) * 0.0012
        wave = wave * np.sin(t * np.pi * (1 + rng.rand()) + rng.rand() * 6) * t
        strand: Points = root + average + 0.5 * shapes[lock] + wave
        if rng.rand() < 0.012:
            strand = strand + rng.randn(3) * 0.004 * t**2
        return strand

    def _bun_strand(self) -> Points:
        """Two thirds of a circle around a random axis: many of them make a ball."""
        rng = self.rng
        tilt, start = rng.rand() * np.pi, rng.rand() * 2 * np.pi
        axis = np.array([np.cos(tilt), 0, np.sin(tilt)])
        u = np.cross(axis, [0, 1, 0])
        v = np.cross(axis, u)
        angle = start + np.linspace(0, 1, 16) * np.pi * 1.3 * rng.choice([-1, 1])
        radius = 0.026 * (1 + 0.12 * rng.randn())
        circle = np.cos(angle)[:, None] * u + np.sin(angle)[:, None] * v
        strand: Points = self.knot + [0, 0.012, 0] + radius * circle + rng.randn(1, 3) * 0.002
        return strand

    # ------------------------------------------------------------ brows
    def _brow_hair(self, side: int) -> Points:
        """One hair of the brow on ``side`` (1: x > 0), somewhere along it."""
        rng = self.rng
        u = rng.rand()  # 0 at the nose, 1 at the temple
        x = 0.0135 + 0.040 * u
        rise = 0.0070 * np.sin(min(1, u / 0.68) * np.pi / 2)
        arch = 0.0205 + rise - 0.0085 * max(0, u - 0.68) / 0.32
        thickness = 0.0042 * (1 - 0.75 * u) ** 0.6 * (0.55 if u < 0.06 else 1)
        z = self.face.eye_z + arch + thickness * (rng.rand() - 0.5) * 1.6
        root, normal = self.skull.from_front(side * x, self.face.front_y - 0.2, z)
        lift = 0.95 * (1 - u) ** 1.3 - 0.25 * u
        heading = np.array([side * (0.35 + 0.9 * u), 0, lift]) + rng.randn(3) * 0.10
        heading -= normal * np.dot(heading, normal)
        heading /= np.linalg.norm(heading)
        t = np.linspace(0, 1, 6)[:, None]
        reach = heading * 0.0062 * (0.75 + 0.5 * rng.rand()) * (1 - 0.35 * u)
        off_skin = normal * (0.0007 * np.sin(t * np.pi * 0.8) + 0.0001)
        strand: Points = root + reach * t + off_skin
        return strand
