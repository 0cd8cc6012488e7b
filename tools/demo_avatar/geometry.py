# SPDX-License-Identifier: Apache-2.0
"""The head's exact geometry: where every pixel's surface point goes when the face or head moves.

Pictures of the person exist for some hundred mouth poses at one head position (render.py), the
canonical one. A picture of any other pose is made from the nearest ones by moving their pixels
along the surface: rasterise the wanted pose, find where each pixel's surface point lies in a
rendered picture, and fetch it from there if it was visible.

World positions are metres (x across, y away from the camera, z up), picture positions pixels.
Colours are premultiplied RGBA, float32 0..1.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numba
import numpy as np
from controls import to_actions
from layout import Box, Layout
from numpy.typing import NDArray
from person import PEOPLE

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

MOST_SOURCES = 40
"""Rendered pictures tried for one pose; those after the nearest ones only fill what these hide."""
HIDDEN_M = 0.0025
"""A surface point so far behind what a picture shows there is hidden in it."""
MOVED_PX, MOVED_M = 0.25, 0.002
"""A pixel whose surface point moved less, across and in depth, is the neutral picture's."""
ALONE = 1e-5
"""Below this weight, no picture shows a pixel."""
FINE = 2
"""Lips and what is between them are put together with so many samples a pixel, each way."""
LIPS = (64, 54, 64, 108)
"""The part of the mouth box that is: pixels left out at its left, top, right and bottom."""
LAYERS = (0, 0, 0, 1, 2, 1, 2, 3)
"""Which layer each part of the mesh is of: skin, upper teeth and gum, lower ones, tongue."""
MIXED, BESIDE = 0.3, 0.01
"""What a pixel at a layer's outline counts, which another layer colours too, against one inside;
and one just beside it."""


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rasterise(
    points: F32, triangles: NDArray[np.int32], x0: int, y0: int, width: int, height: int
) -> tuple[F32, NDArray[np.int32], F32]:
    """Depth (1e9 = none), triangle (-1 = none) and two barycentric weights of each pixel centre."""
    depth = np.full((height, width), np.float32(1e9))
    which = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, bx, cx = points[a, 0], points[b, 0], points[c, 0]
        ay, by, cy = points[a, 1], points[b, 1], points[c, 1]
        left = max(int(np.ceil(min(ax, bx, cx) - x0 - 0.5)), 0)
        right = min(int(np.floor(max(ax, bx, cx) - x0 - 0.5)), width - 1)
        top = max(int(np.ceil(min(ay, by, cy) - y0 - 0.5)), 0)
        bottom = min(int(np.floor(max(ay, by, cy) - y0 - 0.5)), height - 1)
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if left > right or top > bottom or abs(area) < 1e-9:
            continue
        for y in range(top, bottom + 1):
            for x in range(left, right + 1):
                px, py = x + x0 + 0.5, y + y0 + 0.5
                u = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                v = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                if u < -1e-5 or v < -1e-5 or u + v > 1 + 1e-5:
                    continue
                z = points[a, 2] * (1 - u - v) + points[b, 2] * u + points[c, 2] * v
                if z < depth[y, x]:
                    depth[y, x] = z
                    which[y, x] = t
                    weights[y, x, 0], weights[y, x, 1] = u, v
    return depth, which, weights


@dataclass
class Raster:
    """What lies at each pixel of a box, H x W: depth in metres (1e9: nothing), triangle
    (-1: nothing), and the weights (H x W x 2) of its second and third corner."""

    depth: F32
    which: NDArray[np.int32]
    weights: F32


class Geometry:
    """The linear model of WORK/geometry.npz and its camera; says who WORK is about.

    Attributes:
        person: Who it is.
        layout: Where things are in this person's pictures.
    """

    def __init__(self, work: pathlib.Path) -> None:
        with np.load(work / "geometry.npz") as z:
            self.base, self.deltas = z["base"], z["deltas"]
            self.actions = [str(a) for a in z["actions"]]
            self.triangles, self.part = z["triangles"], z["part"]
            self.camera, self.cz, self.front = z["camera"], float(z["cz"]), float(z["front"])
            self.person = PEOPLE[str(z["person"])]
            width, height, eyes_row, lips_row = (int(v) for v in z["layout"])
            self.layout = Layout(width, height, eyes_row, lips_row, float(z["scale"]))

    def vertices(self, controls: F32) -> F32:
        """World positions of all vertices (V x 3) for eight controls."""
        weights = to_actions([float(c) for c in controls])
        out = self.base.copy()
        for k, name in enumerate(self.actions):
            if weights.get(name, 0.0):
                out += np.float32(weights[name]) * self.deltas[k]
        return out

    def project(self, world: F32) -> F32:
        """World positions (... x 3) to pixel x, y and depth (metres from the camera)."""
        shape = world.shape
        flat = np.concatenate([world.reshape(-1, 3), np.ones((world.size // 3, 1), np.float32)], 1)
        clip = flat @ self.camera.T.astype(np.float32)
        w = clip[:, 3]
        x = (clip[:, 0] / w + 1) / 2 * self.layout.width
        y = (1 - clip[:, 1] / w) / 2 * self.layout.height
        return np.stack([x, y, w], 1).reshape(shape).astype(np.float32)

    def near_mouth(self) -> Geometry:
        """The part that can show in the mouth box; a third of the work."""
        p = self.project(self.base)[self.triangles].mean(1)
        x0, y0, x1, y1 = self.layout.mouth
        inside = (p[:, 0] > x0 - 40) & (p[:, 0] < x1 + 40)
        inside &= (p[:, 1] > y0 - 70) & (p[:, 1] < y1 + 60)
        front = self.base[self.triangles].mean(1)[:, 1] < self.front + 0.14
        keep = inside & front
        used, renumbered = np.unique(self.triangles[keep], return_inverse=True)
        small = copy.copy(self)
        small.base, small.deltas = self.base[used], np.ascontiguousarray(self.deltas[:, used])
        small.triangles = renumbered.reshape(-1, 3).astype(np.int32)
        small.part = self.part[keep]
        return small

    def raster(self, projected: F32, box: Box) -> Raster:
        """Rasterise projected vertices (V x 3) in a box."""
        x0, y0, x1, y1 = box
        return Raster(*_rasterise(projected, self.triangles, x0, y0, x1 - x0, y1 - y0))

    def points(self, raster: Raster, values: F32) -> F32:
        """Per pixel, the interpolated vertex values (H x W x 3); garbage where nothing lies."""
        corners = self.triangles[raster.which]
        first, second, third = (values[corners[..., k]] for k in range(3))
        u, v = raster.weights[..., :1], raster.weights[..., 1:]
        out: F32 = first * (1 - u - v) + second * u + third * v
        return out


def nearest_filled(valid: NDArray[np.bool_]) -> tuple[I64, I64]:
    """For every pixel, row and column of the nearest valid one."""
    _, labels = cv2.distanceTransformWithLabels(
        (~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    rows, columns = np.nonzero(valid)
    order = np.zeros(labels.max() + 1, np.int64)
    order[labels[valid]] = np.arange(len(rows))
    index = order[labels]
    return rows[index], columns[index]


@dataclass
class _Wanted:
    """A mouth pose to make a picture of: projected vertices, and what they show in the box."""

    vertices: F32
    raster: Raster
    valid: NDArray[np.bool_]
    filled: tuple[I64, I64]
    """For each pixel, the nearest one that shows the mesh: its motion is taken where none lies."""


class Mouths:
    """Pictures of any mouth pose at the canonical head position."""

    def __init__(
        self, work: pathlib.Path, geometry: Geometry, skip: frozenset[int] = frozenset()
    ) -> None:
        """Load the rendered mouths of WORK, but those of ``skip``."""
        self.geometry = geometry.near_mouth()
        folder = work / "render"
        table = np.load(folder / "controls.npy")
        self._box = x0, y0, x1, y1 = geometry.layout.mouth
        self.neutral = load_rgba(folder / "person.png")[y0:y1, x0:x1]
        self.controls: list[F32] = [np.zeros(8, np.float32)]
        self.pictures: list[F32] = [self.neutral]
        for i, row in enumerate(table):
            path = folder / "mouths" / f"{i:04d}.png"
            if i == 0 or i in skip or not path.exists():
                continue
            self.controls.append(row)
            self.pictures.append(load_rgba(path))
        motion = np.linalg.norm(self.geometry.deltas, axis=2).max(0)
        self._lips: I64 = np.argsort(-motion)[:6000:20]
        """Vertices among those that move most: their places are a fingerprint of a pose."""
        self._vertices = [self._mouth_vertices(c) for c in self.controls]
        prints = np.stack([v[self._lips] for v in self._vertices])
        self._prints = prints.reshape(len(self.controls), -1)
        self._rasters: dict[int, Raster] = {}
        self._layers = np.array(LAYERS, np.int16)[self.geometry.part]
        self._layers_shown: dict[int, tuple[F32, F32, NDArray[np.int16], F32]] = {}
        left, top, right, bottom = LIPS
        self._lips_box = (
            (x0 + left, y0 + top, x1 - right, y1 - bottom),
            np.s_[top : y1 - y0 - bottom, left : x1 - x0 - right],
        )
        rows, columns = np.mgrid[0 : y1 - y0, 0 : x1 - x0].astype(np.float32)
        self._rows: F32 = rows
        self._columns: F32 = columns

    def picture(self, controls: F32, sources: int = 3) -> tuple[F32, F32]:
        """The mouth box for a pose, mixed from its ``sources`` nearest rendered pictures.

        Returns:
            The picture and how far each pixel may differ from the neutral picture (0 = must be
            the same, 1 = free), H x W.
        """
        wanted = self._wanted(controls)
        prints = wanted.vertices[self._lips].reshape(1, -1)
        distance = np.sqrt(((self._prints - prints) ** 2).mean(1))
        mixed, known = self._mixed(
            distance, sources, wanted.valid.shape, 6, lambda k: self._sight(wanted, k)
        )
        out = np.where(known[..., None], mixed, self.pictures[int(np.argmin(distance))])
        self._put_lips(out, wanted, distance, sources)
        free = self._freedom(wanted)
        out = out * free[..., None] + self.neutral * (1 - free[..., None])
        return np.clip(out, 0, 1), free

    def _mixed(
        self,
        distance: F32,
        sources: int,
        shape: tuple[int, ...],
        few: int,
        sight: Callable[[int], tuple[F32, F32, F32]],
    ) -> tuple[F32, NDArray[np.bool_]]:
        """Mix rendered pictures, the nearer the more; and say which pixels any of them shows.

        Args:
            distance: Of each rendered picture.
            sources: The nearest so many are mixed; others only fill what these hide.
            shape: H x W of what is made.
            few: So few missing pixels may stay so.
            sight: Column and row of each pixel in a rendered picture, and how much it counts there.
        """
        total = np.zeros((*shape, 4), np.float32)
        weight = np.zeros(shape, np.float32)
        for n, k in enumerate(np.argsort(distance)[:MOST_SOURCES]):
            missing = weight < ALONE
            if n >= sources and missing.sum() < few:
                break
            u, v, visible = sight(int(k))
            if n >= sources:
                visible *= missing
            if not visible.any():
                continue
            picture = cv2.remap(
                self.pictures[int(k)], u, v, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
            )
            share = visible / (distance[k] + 0.15) ** 3
            total += picture * share[..., None]
            weight += share
        return total / np.maximum(weight, ALONE)[..., None], weight > ALONE

    def _put_lips(self, out: F32, wanted: _Wanted, distance: F32, sources: int) -> None:
        """Put lips, teeth and tongue, each a layer with an outline of its own, into a picture.

        A layer's pixels come from pictures that show the same layer there, of inside its outline
        where any does: across outlines, colours of neighbours would come along.
        """
        box, at = self._lips_box
        x0, y0, x1, y1 = box
        points = wanted.vertices.copy()
        points[:, :2] *= FINE
        fine = (x0 * FINE, y0 * FINE, x1 * FINE, y1 * FINE)
        raster = self.geometry.raster(points, fine)
        valid = raster.which >= 0
        filled = nearest_filled(valid)
        layer = np.where(valid, self._layers[raster.which], -1)

        def sight(k: int) -> tuple[F32, F32, F32]:
            there = self.geometry.points(raster, self._vertices[k])[filled]
            u, v = there[..., 0] - self._box[0] - 0.5, there[..., 1] - self._box[1] - 0.5
            shown = self._shown(k)
            look = {"interpolation": cv2.INTER_NEAREST, "borderMode": cv2.BORDER_REPLICATE}
            near, far, number, inside = (cv2.remap(x, u, v, **look) for x in shown)
            depth = there[..., 2] - HIDDEN_M
            visible = np.where(number == layer, MIXED + (1 - MIXED) * inside, BESIDE)
            visible = np.where(depth < near, visible, BESIDE * (depth < far)) * valid
            return u, v, visible

        made, found = self._mixed(distance, sources, valid.shape, 6 * FINE**2, sight)
        for number in np.unique(layer):
            here = layer == number
            known = here & found
            if known.any():
                made[here] = made[nearest_filled(known)][here]
        height, width = y1 - y0, x1 - x0
        made = cv2.resize(made, (width, height), interpolation=cv2.INTER_AREA)
        rows, columns = np.mgrid[0:height, 0:width]
        edge = np.minimum.reduce([rows, columns, height - 1 - rows, width - 1 - columns])
        soft = np.clip(edge / 8, 0, 1).astype(np.float32)[..., None]
        out[at] = made * soft + out[at] * (1 - soft)

    def _shown(self, k: int) -> tuple[F32, F32, NDArray[np.int16], F32]:
        """What the rendered picture ``k`` shows at each of its pixels: how deep it lies, and how
        deep at most around; which layer; and 1 where none of the pixels around shows another."""
        if k not in self._layers_shown:
            raster = self._raster(k)
            layer = np.where(raster.which >= 0, self._layers[raster.which], -1).astype(np.int16)
            around = np.ones((3, 3), np.uint8)
            inside = cv2.erode(layer, around) == cv2.dilate(layer, around)
            far = cv2.dilate(raster.depth, around)
            self._layers_shown[k] = raster.depth, far, layer, inside.astype(np.float32)
        return self._layers_shown[k]

    def _mouth_vertices(self, controls: F32) -> F32:
        """Projected vertices of a pose."""
        return self.geometry.project(self.geometry.vertices(controls))

    def _wanted(self, controls: F32) -> _Wanted:
        """Rasterise a pose."""
        vertices = self._mouth_vertices(controls)
        raster = self.geometry.raster(vertices, self._box)
        valid = raster.which >= 0
        return _Wanted(vertices, raster, valid, nearest_filled(valid))

    def _raster(self, k: int) -> Raster:
        """What the rendered picture ``k`` shows at each of its pixels."""
        if k not in self._rasters:
            self._rasters[k] = self.geometry.raster(self._vertices[k], self._box)
        return self._rasters[k]

    def _sight(self, wanted: _Wanted, k: int) -> tuple[F32, F32, F32]:
        """Where the wanted pixels lie in the rendered picture ``k``, and which it shows.

        Returns:
            Column and row in that picture, and 1 where the surface point is visible there, else 0.
        """
        columns, rows = self._columns, self._rows
        there = self.geometry.points(wanted.raster, self._vertices[k])
        u, v = there[..., 0] - self._box[0] - 0.5, there[..., 1] - self._box[1] - 0.5
        u, v = (u - columns)[wanted.filled] + columns, (v - rows)[wanted.filled] + rows
        seen = cv2.remap(
            self._raster(k).depth, u, v, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE
        )
        hidden = wanted.valid & (there[..., 2] > seen + HIDDEN_M)
        visible = cv2.erode((~hidden).astype(np.uint8), np.ones((3, 3), np.uint8))
        return u, v, visible.astype(np.float32)

    def _freedom(self, wanted: _Wanted) -> F32:
        """How far each pixel may differ from the neutral picture: where the surface moved, softly.

        0 at the box's edges, so that the mouth joins the person without a seam.
        """
        here = self.geometry.points(wanted.raster, wanted.vertices)[..., :2]
        neutral = self.geometry.points(wanted.raster, self._vertices[0])[..., :2]
        moved = np.linalg.norm(here - neutral, axis=2)[wanted.filled]
        deeper = np.abs(wanted.raster.depth - self._raster(0).depth)
        changed = (moved > MOVED_PX).astype(np.uint8)
        changed |= (deeper > MOVED_M).astype(np.uint8)
        changed[self._rows < 6] = 0
        around = cv2.dilate(changed, np.ones((13, 13), np.uint8)).astype(np.float32)
        free = cv2.GaussianBlur(around, (0, 0), 4)
        height, width = wanted.valid.shape
        columns, rows = self._columns, self._rows
        edge = np.minimum.reduce([rows, columns, width - 1 - columns, height - 1 - rows])
        out: F32 = free * np.clip((edge - 2) / 10, 0, 1)
        return out


def load_rgba(path: pathlib.Path) -> F32:
    """An RGBA picture with premultiplied colour, float32 0..1."""
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.ndim != 3 or raw.shape[2] != 4:
        raise ValueError(f"{path}: expected an RGBA picture")
    rgba = cv2.cvtColor(raw, cv2.COLOR_BGRA2RGBA).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def inner_lips(geometry: Geometry) -> tuple[I64, I64]:
    """Vertices of the upper and the lower lip that meet at the middle of the closed mouth.

    Of the skin around the lips' line, in front, what drops when the jaw opens is the lower lip,
    what stays the upper.
    """
    layout = geometry.layout
    rest = geometry.vertices(np.zeros(8, np.float32))
    wide = geometry.vertices(np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32))
    skin = np.zeros(len(rest), bool)
    skin[np.unique(geometry.triangles[geometry.part == 0])] = True
    px = geometry.project(rest)
    aside = np.abs(px[:, 0] - layout.width / 2)
    away = np.abs(px[:, 1] - layout.lips_row)
    foremost = px[skin & (away < 34) & (aside < 25), 2].min()
    middle = skin & (aside < 25) & (px[:, 2] < foremost + 0.016)
    drop = geometry.project(wide)[:, 1] - px[:, 1]
    lips = middle & (away < 16)
    return np.nonzero(lips & (drop < 8))[0], np.nonzero(lips & (drop > 22))[0]


def opening_px(geometry: Geometry, controls: F32) -> F32:
    """Gap between the lips in pixels at the middle of the mouth, N x 8 to N; 0 when they touch."""
    upper, lower = inner_lips(geometry)
    middle = geometry.layout.width / 2
    out = np.empty(len(controls), np.float32)
    for i, row in enumerate(controls):
        p = geometry.project(geometry.vertices(row)[np.concatenate([upper, lower])])
        up, low = p[: len(upper)], p[len(upper) :]
        gaps = []
        for x in np.arange(middle - 12, middle + 13, 4):
            above = up[np.abs(up[:, 0] - x) < 3.5, 1]
            below = low[np.abs(low[:, 0] - x) < 3.5, 1]
            if len(above) and len(below):
                gaps.append(below.min() - above.max())
        out[i] = max(0.0, float(np.median(gaps))) if gaps else 0.0
    return out
