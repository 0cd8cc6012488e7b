# SPDX-License-Identifier: Apache-2.0
"""The head's exact geometry: where every pixel's surface point goes when the face or head moves.

Pictures of the person exist for some hundred mouth poses at one head position (render.py). A
picture of any other pose is made from the nearest ones by moving their pixels along the surface:
rasterise the wanted pose, find where each pixel's surface point lies in a rendered picture, and
fetch it from there if it was visible.
"""

from __future__ import annotations

import copy
import pathlib
from dataclasses import dataclass

import cv2
import numba
import numpy as np
from controls import to_actions
from numpy.typing import NDArray

WIDTH, HEIGHT = 1280, 720
MOUTH = (508, 276, 772, 512)
"""The rendered mouth pictures' place, x0, y0, x1, y1."""

F32 = NDArray[np.float32]


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rasterise(points: F32, triangles: NDArray[np.int32], x0: int, y0: int, width: int, height: int) -> tuple[F32, NDArray[np.int32], F32]:
    """Depth (1 = far), triangle (-1 = none) and two barycentric weights of each pixel centre."""
    depth = np.full((height, width), np.float32(1e9))
    which = np.full((height, width), -1, np.int32)
    weights = np.zeros((height, width, 2), np.float32)
    for t in range(len(triangles)):
        a, b, c = triangles[t]
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        left, right = max(int(np.ceil(min(ax, bx, cx) - x0 - 0.5)), 0), min(int(np.floor(max(ax, bx, cx) - x0 - 0.5)), width - 1)
        top, bottom = max(int(np.ceil(min(ay, by, cy) - y0 - 0.5)), 0), min(int(np.floor(max(ay, by, cy) - y0 - 0.5)), height - 1)
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
    """What lies at each pixel of a box: triangle (-1: nothing), barycentric weights, depth."""

    depth: F32
    which: NDArray[np.int32]
    weights: F32


class Geometry:
    """The linear model of WORK/geometry.npz and its camera."""

    def __init__(self, work: pathlib.Path) -> None:
        with np.load(work / "geometry.npz") as z:
            self.base, self.deltas = z["base"], z["deltas"]
            self.actions = [str(a) for a in z["actions"]]
            self.triangles, self.part = z["triangles"], z["part"]
            self.camera, self.cz, self.front = z["camera"], float(z["cz"]), float(z["front"])

    def vertices(self, controls: F32) -> F32:
        """World positions (metres) of all vertices for eight controls."""
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
        out = np.stack([(clip[:, 0] / w + 1) / 2 * WIDTH, (1 - clip[:, 1] / w) / 2 * HEIGHT, w], 1)
        return out.reshape(shape).astype(np.float32)

    def near_mouth(self) -> Geometry:
        """The part that can show in the mouth box; a third of the work."""
        p = self.project(self.base)[self.triangles].mean(1)
        inside = (p[:, 0] > MOUTH[0] - 40) & (p[:, 0] < MOUTH[2] + 40)
        inside &= (p[:, 1] > MOUTH[1] - 70) & (p[:, 1] < MOUTH[3] + 60)
        front = self.base[self.triangles].mean(1)[:, 1] < self.front + 0.14
        keep = inside & front
        used, renumbered = np.unique(self.triangles[keep], return_inverse=True)
        small = copy.copy(self)
        small.base, small.deltas = self.base[used], np.ascontiguousarray(self.deltas[:, used])
        small.triangles = renumbered.reshape(-1, 3).astype(np.int32)
        small.part = self.part[keep]
        return small

    def raster(self, projected: F32, box: tuple[int, int, int, int]) -> Raster:
        """Rasterise projected vertices in a box x0, y0, x1, y1."""
        x0, y0, x1, y1 = box
        return Raster(*_rasterise(projected, self.triangles, x0, y0, x1 - x0, y1 - y0))

    def points(self, raster: Raster, values: F32) -> F32:
        """Per pixel, the interpolated vertex values (H x W x 3); garbage where nothing lies."""
        triangles = self.triangles[raster.which]
        u, v = raster.weights[..., :1], raster.weights[..., 1:]
        return values[triangles[..., 0]] * (1 - u - v) + values[triangles[..., 1]] * u + values[triangles[..., 2]] * v


def nearest_filled(valid: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every pixel, row and column of the nearest valid one."""
    _, labels = cv2.distanceTransformWithLabels((~valid).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    rows, columns = np.nonzero(valid)
    order = np.zeros(labels.max() + 1, np.int64)
    order[labels[valid]] = np.arange(len(rows))
    index = order[labels]
    return rows[index], columns[index]


class Mouths:
    """Pictures of any mouth pose at the canonical head position, premultiplied RGBA float32."""

    def __init__(self, work: pathlib.Path, geometry: Geometry, skip: frozenset[int] = frozenset()) -> None:
        self.geometry = geometry = geometry.near_mouth()
        folder = work / "render"
        table = np.load(folder / "controls.npy")
        x0, y0, x1, y1 = MOUTH
        person = load_rgba(folder / "person.png")
        self.neutral = person[y0:y1, x0:x1]
        self.controls: list[F32] = [np.zeros(8, np.float32)]
        self.pictures: list[F32] = [self.neutral]
        for i, row in enumerate(table):
            path = folder / "mouths" / f"{i:04d}.png"
            if i == 0 or i in skip or not path.exists():
                continue
            self.controls.append(row)
            self.pictures.append(load_rgba(path))
        self._vertices = [self._mouth_vertices(c) for c in self.controls]
        self._probe = np.stack([v[self._lips] for v in self._vertices]).reshape(len(self.controls), -1)
        self._projected: dict[int, tuple[F32, Raster]] = {}

    def _mouth_vertices(self, controls: F32) -> F32:
        return self.geometry.project(self.geometry.vertices(controls))

    @property
    def _lips(self) -> NDArray[np.int64]:
        """Vertices that move most: a fingerprint of a pose."""
        if not hasattr(self, "_lip_index"):
            motion = np.linalg.norm(self.geometry.deltas, axis=2).max(0)
            top = np.argsort(-motion)[:6000]
            self._lip_index = top[::20]
        return self._lip_index

    def _source(self, k: int) -> tuple[F32, Raster]:
        if k not in self._projected:
            p = self._vertices[k]
            self._projected[k] = (p, self.geometry.raster(p, MOUTH))
        return self._projected[k]

    def picture(self, controls: F32, sources: int = 3) -> tuple[F32, F32]:
        """The mouth box for a pose.

        Returns:
            The picture (premultiplied RGBA 0..1) and how far each pixel may differ from the
            neutral picture (0 = must be the same, 1 = free), H x W.
        """
        g = self.geometry
        p = self._mouth_vertices(controls)
        raster = g.raster(p, MOUTH)
        valid = raster.which >= 0
        distance = np.sqrt(((self._probe - p[self._lips].reshape(1, -1)) ** 2).mean(1))
        chosen = np.argsort(distance)
        total = np.zeros((*valid.shape, 4), np.float32)
        weight = np.zeros(valid.shape, np.float32)
        fallback = self.pictures[int(chosen[0])]
        rows, columns = nearest_filled(valid)
        yy, xx = np.mgrid[0 : valid.shape[0], 0 : valid.shape[1]].astype(np.float32)
        for n, k in enumerate(chosen[:40]):
            missing = weight < 1e-5
            if n >= sources and missing.sum() < 6:
                break  # further pictures only fill what the nearest ones do not show
            points, source = self._source(int(k))
            there = g.points(raster, points)
            u, v = there[..., 0] - MOUTH[0] - 0.5, there[..., 1] - MOUTH[1] - 0.5
            u, v = (u - xx)[rows, columns] + xx, (v - yy)[rows, columns] + yy
            seen_depth = cv2.remap(source.depth, u, v, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
            hidden = valid & (there[..., 2] > seen_depth + 0.0025)
            visible = cv2.erode((~hidden).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.float32)
            if n >= sources:
                visible *= missing
                if not visible.any():
                    continue
            picture = cv2.remap(self.pictures[int(k)], u, v, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            w = visible / (distance[k] + 0.15) ** 3
            total += picture * w[..., None]
            weight += w
        out = np.where(weight[..., None] > 1e-5, total / weight[..., None], fallback)
        moved = np.linalg.norm(g.points(raster, p)[..., :2] - g.points(raster, self._vertices[0])[..., :2], axis=2)
        changed = (moved[rows, columns] > 0.25).astype(np.uint8)
        neutral = self._source(0)[1]
        changed |= (np.abs(raster.depth - neutral.depth) > 0.002).astype(np.uint8)
        changed[yy < 6] = 0
        free = cv2.GaussianBlur(cv2.dilate(changed, np.ones((13, 13), np.uint8)).astype(np.float32), (0, 0), 4)
        edge = np.minimum.reduce([yy, xx, valid.shape[1] - 1 - xx, valid.shape[0] - 1 - yy])
        free = free * np.clip((edge - 2) / 10, 0, 1)
        return np.clip(out * free[..., None] + self.neutral * (1 - free[..., None]), 0, 1), free


def load_rgba(path: pathlib.Path) -> F32:
    """An RGBA picture with premultiplied colour, float32 0..1."""
    raw = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.ndim != 3 or raw.shape[2] != 4:
        raise ValueError(f"{path}: expected an RGBA picture")
    rgba = cv2.cvtColor(raw, cv2.COLOR_BGRA2RGBA).astype(np.float32) / 255
    rgba[..., :3] *= rgba[..., 3:]
    return rgba


def inner_lips(geometry: Geometry) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Vertices of the upper and the lower lip that meet at the middle of the closed mouth."""
    rest = geometry.vertices(np.zeros(8, np.float32))
    wide = geometry.vertices(np.array([1, 0, 0, 0, 0, 0, 0, 0], np.float32))
    skin = np.zeros(len(rest), bool)
    skin[np.unique(geometry.triangles[geometry.part == 0])] = True
    px = geometry.project(rest)
    middle = skin & (np.abs(px[:, 0] - WIDTH / 2) < 22) & (px[:, 2] < px[skin & (np.abs(px[:, 1] - 365) < 30) & (np.abs(px[:, 0] - 640) < 22), 2].min() + 0.016)
    drop = geometry.project(wide)[:, 1] - px[:, 1]
    lips = middle & (np.abs(px[:, 1] - 366) < 14)
    return np.nonzero(lips & (drop < 6))[0], np.nonzero(lips & (drop > 14))[0]


def opening_px(geometry: Geometry, controls: F32) -> F32:
    """Gap between the lips in pixels at the middle of the mouth, N x 8 to N; 0 when they touch."""
    upper, lower = inner_lips(geometry)
    out = np.empty(len(controls), np.float32)
    for i, c in enumerate(controls):
        p = geometry.project(geometry.vertices(c)[np.concatenate([upper, lower])])
        up, low = p[: len(upper)], p[len(upper) :]
        gaps = []
        for x in np.arange(628, 653, 4):
            u, v = up[np.abs(up[:, 0] - x) < 3.5, 1], low[np.abs(low[:, 0] - x) < 3.5, 1]
            if len(u) and len(v):
                gaps.append(v.min() - u.max())
        out[i] = max(0.0, float(np.median(gaps))) if gaps else 0.0
    return out
