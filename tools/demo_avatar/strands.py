# SPDX-License-Identifier: Apache-2.0
"""Hair and brows: strands grown over the skull, as arrays of points.

Metres, z up, the face looks to -y, x to its left. A strand is P x 3 points from root to tip.
"""

from __future__ import annotations

from dataclasses import dataclass

import mathutils
import numpy as np
from mathutils.bvhtree import BVHTree
from mathutils.kdtree import KDTree
from numpy.typing import NDArray
from person import Person

Points = NDArray[np.float64]

GUIDES = {"long": 1100, "short": 900}
DOWN, BACK, UP = (np.array(v, float) for v in ((0, 0, -1), (0, 1, 0), (0, 0, 1)))
POINTS = {"long": 30, "short": 10}
"""Points of a strand."""
BROW_HAIRS, BABY_HAIRS = 520, 1500


@dataclass(frozen=True)
class Face:
    """Where the face is (metres): the eyes' height and distance from the middle, the y of the
    foremost points between them, the lips' and the chin's height, and the nose's tip."""

    eye_z: float
    eye_x: float
    front_y: float
    lips_z: float
    chin_z: float
    nose: Points


def smooth(value: Points, low: float, high: float) -> Points:
    """0 up to ``low``, 1 from ``high``, with a smooth step between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    out: Points = t * t * (3 - 2 * t)
    return out


def unit(vector: Points) -> Points:
    """The vector with length 1."""
    out: Points = vector / max(1e-12, float(np.linalg.norm(vector)))
    return out


class Ripples:
    """A smooth random field over space: a few waves in random directions; about -1..1."""

    def __init__(self, rng: np.random.RandomState, length: float, waves: int = 10) -> None:
        """``length``: the shortest wave's length in metres."""
        k = rng.randn(waves, 3)
        k /= np.linalg.norm(k, axis=1, keepdims=True)
        self._k = k * (2 * np.pi / length) * (0.35 + 0.65 * rng.rand(waves, 1))
        self._phase = rng.rand(waves) * 2 * np.pi

    def __call__(self, points: Points) -> Points:
        out: Points = np.sin(points @ self._k.T + self._phase).sum(-1) / np.sqrt(len(self._phase))
        return out


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


class Hairline:
    """Where hair grows: irregular, and sparse at its edge."""

    def __init__(self, face: Face, person: Person) -> None:
        rng = np.random.RandomState(person.seed + 100)
        self._face, self._short = face, person.hair.cut == "short"
        self._wide, self._narrow = Ripples(rng, 0.030), Ripples(rng, 0.007)

    def above(self, points: Points) -> Points:
        """How far points (N x 3) lie above the hairline, metres."""
        eye_z = self._face.eye_z
        aside, behind = abs(points[:, 0]), points[:, 1] - self._face.front_y
        # The forehead, falling towards the temples; then down to the ear, behind it, and the nape.
        corner = 0.006 if self._short else 0.0
        line = eye_z + 0.066 + corner * smooth(aside, 0.015, 0.034)
        line = line - 1.7 * np.maximum(0, aside - 0.034)
        temple = eye_z + 0.030 - (behind - 0.055) * 1.5
        line = np.where(behind > 0.055, np.minimum(line, temple), line)
        line = np.where(behind > 0.100, eye_z - 0.022 - (behind - 0.100) * 1.3, line)
        line = np.where(behind > 0.150, eye_z - 0.080, line)
        return points[:, 2] - line - 0.0042 * self._wide(points) - 0.0018 * self._narrow(points)

    def density(self, points: Points) -> Points:
        """How densely hair grows at points (N x 3), 0..1."""
        return smooth(self.above(points), -0.003, 0.012) ** 1.2


class Hairdresser:
    """Grows a person's hair and brows."""

    def __init__(self, skull: Skull, face: Face, person: Person) -> None:
        self.skull, self.face, self.person = skull, face, person
        self.rng = np.random.RandomState(person.seed)
        self.cut = person.hair.cut
        self.points = POINTS[self.cut]
        self.hairline = Hairline(face, person)
        self.axis_y = face.front_y + 0.095
        """Where the head's upright axis is."""
        self.parting = 0.022
        """The x of the parting."""

    # ------------------------------------------------------------ hair
    def hair(self) -> list[Points]:
        """Strands like the guides near their roots."""
        roots, guides = self._guides()
        sides = self._side(roots)
        shapes = [guide - root for guide, root in zip(guides, roots, strict=True)]
        strands: list[Points] = []
        every = self._roots(self.person.hair.strands)
        for side in (-1, 1):
            mine = np.nonzero(sides == side)[0]
            lookup = KDTree(len(mine))
            for number in mine:
                lookup.insert(mathutils.Vector(roots[number]), int(number))
            lookup.balance()
            ours = every[self._side(every) == side]
            strands += [self._between(root, shapes, lookup) for root in ours]
        return strands + self._baby_hairs()

    def _side(self, roots: Points) -> NDArray[np.int64]:
        """On which side of the parting roots lie: 1 or -1."""
        if self.cut == "short":
            return np.ones(len(roots), int)
        wander = 0.0022 * np.sin(roots[:, 1] * 260) + 0.0012 * np.sin(roots[:, 1] * 811)
        fade = 1 - smooth(roots[:, 1] - self.face.front_y, 0.07, 0.15)
        return np.where(roots[:, 0] > self.parting * fade + wander, 1, -1)

    def _random_skin(self, count: int) -> Points:
        """Random points of the skull, evenly by area."""
        a, b, c = self.skull.triangles[:, 0], self.skull.triangles[:, 1], self.skull.triangles[:, 2]
        areas = np.linalg.norm(np.cross(b - a, c - a), axis=1)
        areas[np.maximum(np.maximum(a[:, 2], b[:, 2]), c[:, 2]) < self.face.eye_z - 0.09] = 0
        t = self.rng.choice(len(areas), count, p=areas / areas.sum())
        u = self.rng.rand(count, 2)
        u = np.where(u.sum(1, keepdims=True) > 1, 1 - u, u)
        out: Points = a[t] + (b[t] - a[t]) * u[:, :1] + (c[t] - a[t]) * u[:, 1:]
        return out

    def _roots(self, count: int) -> Points:
        """Random points where hair grows, count x 3."""
        found: list[Points] = []
        while sum(map(len, found)) < count:
            points = self._random_skin(count)
            keep = self.rng.rand(len(points)) < self.hairline.density(points)
            found.append(points[keep])
        return np.concatenate(found)[:count]

    def _guides(self) -> tuple[Points, list[Points]]:
        """Roots and guide strands, ``points`` points at equal distances each."""
        roots = self._roots(GUIDES[self.cut])
        grow = self._grow_long if self.cut == "long" else self._grow_short
        guides = []
        for root in roots:
            path = grow(root)
            along = np.r_[0, np.cumsum(np.linalg.norm(np.diff(path, axis=0), axis=1))]
            even = np.linspace(0, along[-1], self.points)
            guides.append(np.stack([np.interp(even, along, path[:, k]) for k in range(3)], 1))
        return roots, guides

    def _step(self, place: Points, heading: Points, stride: float, layer: float) -> Points:
        """One step onwards, kept ``layer`` metres off the skin; turns ``heading`` in place."""
        moved = place + heading * stride
        skin, normal, height = self.skull.nearest(moved)
        if height < layer:
            moved = skin + normal * layer
            heading -= normal * min(0.0, float(np.dot(heading, normal)))
            heading[:] = unit(heading)
        return moved

    def _grow_long(self, root: Points) -> Points:
        """Away from the parting, over the ears, down to the shoulders in soft waves."""
        face, rng = self.face, self.rng
        side = float(self._side(root[None])[0])
        _, normal, _ = self.skull.nearest(root)
        top = smooth(np.array(root[2] - face.eye_z), 0.03, 0.10)
        layer = 0.003 + (0.004 + 0.013 * float(top)) * rng.rand() ** 0.8
        front = 1 - smooth(np.array(root[1] - face.front_y), 0.05, 0.10)
        apart = float(smooth(np.array(abs(root[0] - self.parting)), 0.0, 0.030))
        layer *= 0.35 + 0.65 * apart
        heading = unit(
            normal * (0.35 + (0.40 + 0.4 * front * top) * apart)
            + side * np.array([0.55, 0, 0])
            + 0.35 * BACK
        )
        place, path = np.array(root), [np.array(root)]
        phase, wave = rng.rand() * 6.28, 0.10 + 0.10 * rng.rand()
        end_z = face.eye_z - 0.128 - 0.022 * rng.rand()
        for i in range(90):
            behind = place[1] - face.front_y
            wanted = DOWN + 0.0
            if place[2] > face.eye_z - 0.01:
                wanted = wanted + BACK * 1.1 * float(1 - smooth(np.array(behind), 0.075, 0.100))
                wanted = wanted + side * np.array([0.5, 0, 0]) * float(top) * (i < 14)
            else:
                wanted = wanted + BACK * 2.0 * float(1 - smooth(np.array(behind), 0.070, 0.085))
                inward = float(smooth(np.array(abs(place[0])), 0.070, 0.10))
                low = float(smooth(np.array(face.eye_z - place[2]), 0.07, 0.14))
                wanted = wanted - side * np.array([0.22 * inward + 0.75 * low, 0, 0])
                curl = wave * np.sin(phase + 75 * (face.eye_z - place[2]))
                wanted = wanted + np.array([curl * side, 0.8 * curl, 0])
            heading = unit(0.80 * heading + 0.20 * unit(wanted))
            grown = min(1.0, (i + 1) / 4)
            place = self._step(place, heading, 0.0055, layer * grown)
            path.append(place)
            if place[2] < end_z:
                break
        return np.array(path)

    def _grow_short(self, root: Points) -> Points:
        """Combed up and to one side on top, close at the sides."""
        face, rng = self.face, self.rng
        _, normal, _ = self.skull.nearest(root)
        up = root[2] - face.eye_z
        front = float(1 - smooth(np.array(root[1] - face.front_y), 0.03, 0.13))
        top = float(smooth(np.array(up - 0.25 * abs(root[0])), 0.035, 0.072))
        length = 0.007 + 0.006 * rng.rand() + top * (0.024 + 0.012 * front + 0.008 * rng.rand())
        comb = top * np.array([-0.38, 0.40 - 0.25 * front, 0.5]) + (1 - top) * (0.45 * BACK + DOWN)
        heading = unit(normal * (0.55 + 0.55 * top * front) + 0.5 * comb + 0.10 * rng.randn(3))
        place, path = np.array(root), [np.array(root)]
        layer = 0.0015 + 0.012 * top * rng.rand()
        for i in range(12):
            wanted = unit(comb + 0.15 * DOWN)
            heading = unit(0.78 * heading + 0.22 * wanted)
            place = self._step(place, heading, length / 12, layer * min(1, (i + 1) / 6))
            path.append(place)
        return np.array(path)

    def _between(self, root: Points, shapes: list[Points], lookup: KDTree) -> Points:
        """A strand between its nearest guides, pulled towards one of them: that makes locks."""
        rng = self.rng
        t = np.linspace(0, 1, self.points)[:, None]
        near = lookup.find_n(mathutils.Vector(root), 3)
        weights = np.array([1 / (distance + 1e-4) for _, _, distance in near])
        weights /= weights.sum()
        average = sum(w * shapes[g] for w, (_, g, _) in zip(weights, near, strict=True))
        place, lock, _ = near[rng.randint(3) if rng.rand() < 0.35 else 0]
        gather = 0.55 * smooth(t, 0.15, 0.9)
        own = root + (1 - gather) * average + gather * shapes[lock]
        strand: Points = own + (np.array(place) - root) * 0.45 * gather
        loose = (0.0016 if self.cut == "long" else 0.0010) * rng.randn(1, 3)
        strand = strand + loose * np.sin(t * np.pi * (1 + 2 * rng.rand()) + rng.rand() * 6) * t
        if rng.rand() < 0.015:
            strand = strand + rng.randn(3) * (0.010 if self.cut == "long" else 0.004) * t**2
        return strand * 1.0

    def _baby_hairs(self) -> list[Points]:
        """Short fine hairs at and below the hairline, lying on the skin."""
        out: list[Points] = []
        rng, t = self.rng, np.linspace(0, 1, 6)[:, None]
        while len(out) < BABY_HAIRS:
            for root in self._random_skin(4000):
                above = float(self.hairline.above(root[None])[0])
                if not -0.009 < above < 0.006 or rng.rand() > 0.8 - 70 * max(0, -above):
                    continue
                _, normal, _ = self.skull.nearest(root)
                side = np.sign(root[0] - self.parting)
                towards = side * np.array([0.6, 0, 0]) + 0.55 * BACK + 0.35 * UP
                heading = unit(towards + 0.35 * rng.randn(3))
                heading -= normal * np.dot(heading, normal)
                reach = 0.006 + 0.012 * rng.rand()
                bend = unit(0.5 * rng.randn(3)) * 0.002
                out.append(root + heading * reach * t + bend * t**2 + normal * 0.0008 * t)
        return out[:BABY_HAIRS]

    # ------------------------------------------------------------ brows
    def brows(self) -> list[Points]:
        """The hairs of both brows."""
        return [self._brow_hair(side) for side in (1, -1) for _ in range(BROW_HAIRS)]

    def _brow_hair(self, side: int) -> Points:
        """One hair of the brow on ``side`` (1: x > 0), somewhere along it."""
        rng, wide = self.rng, self.person.hair.brow_width
        u = min(1.0, max(0.0, 1.04 * rng.rand() ** 0.9 - 0.02))  # 0 at the nose, 1 at the temple
        x = (0.0125 + 0.0405 * u) * self.face.eye_x / 0.0290 + 0.0008 * rng.randn()
        rise = 0.0048 * np.sin(min(1, u / 0.68) * np.pi / 2)
        arch = 0.0182 + rise - 0.0072 * max(0, u - 0.68) / 0.32
        thick = 0.0060 * wide * (1 - 0.72 * u) ** 0.7 * float(smooth(np.array(u), -0.10, 0.14))
        z = self.face.eye_z + arch + thick * np.clip(0.42 * rng.randn(), -0.9, 0.9)
        root, normal = self.skull.from_front(side * x, self.face.front_y - 0.2, z)
        lift = 0.95 * (1 - u) ** 1.3 - 0.28 * u
        below = (z - self.face.eye_z - arch) / max(thick, 1e-4)
        heading = np.array([side * (0.35 + 0.9 * u), 0, lift - 0.35 * below]) + rng.randn(3) * 0.16
        heading = unit(heading - normal * np.dot(heading, normal))
        t = np.linspace(0, 1, 6)[:, None]
        reach = heading * 0.0068 * (0.6 + 0.6 * rng.rand()) * (1 - 0.35 * u)
        droop = np.array([side * 0.0006, 0, -0.0006]) * t**2
        strand: Points = root + reach * t + droop + normal * (0.0008 * np.sin(t * 2.5) + 0.0001)
        return strand
