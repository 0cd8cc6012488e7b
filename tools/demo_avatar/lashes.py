# SPDX-License-Identifier: Apache-2.0
"""Lashes: single hairs along MakeHuman's lash strips, which only say where they go.

A strip is a grid of quads, some along the lid, a few from the lid to the tips. A hair runs up the
strip, bends a little, and moves with the strip's vertices when the lid does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from body import Mesh
from numpy.typing import NDArray

Points = NDArray[np.float64]
POINTS = 6


@dataclass
class Lashes:
    """Hairs whose points are sums of some of the mesh's vertices.

    Attributes:
        followed: K vertex numbers of the base mesh.
        weights: H x POINTS x K.
    """

    followed: NDArray[np.int64]
    weights: Points

    def hairs(self, vertices: Points) -> Points:
        """H x POINTS x 3 points for the base mesh's vertices."""
        out: Points = self.weights @ vertices[self.followed]
        return out


def _grid(mesh: Mesh, faces: list[int]) -> NDArray[np.int64]:
    """The strip's vertex numbers, rows from the eyeball to the tips by columns along the lid."""
    neighbours: dict[int, set[int]] = {}
    for k in faces:
        loop = mesh.faces[k]
        for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
            neighbours.setdefault(a, set()).add(b)
            neighbours.setdefault(b, set()).add(a)
    corners = [v for v, near in neighbours.items() if len(near) == 2]
    sides = [
        _edge(neighbours, corners, corner, first)
        for corner in corners
        for first in neighbours[corner]
    ]
    longest = max(map(len, sides))
    depth = mesh.vertices[:, 2]
    row = min((side for side in sides if len(side) == longest), key=lambda s: depth[s].mean())
    if mesh.vertices[row[0], 0] > mesh.vertices[row[-1], 0]:
        row = row[::-1]
    rows, seen = [row], set(row)
    while len(seen) < len(neighbours):
        row = [next(iter(neighbours[v] - seen)) for v in row]
        rows.append(row)
        seen.update(row)
    return np.array(rows)


def _edge(
    neighbours: dict[int, set[int]], corners: list[int], corner: int, first: int
) -> list[int]:
    """The strip's edge from a corner by way of its neighbour ``first`` to the next corner."""
    edge = [corner, first]
    while edge[-1] not in corners:
        onwards = neighbours[edge[-1]] - set(edge)
        edge.append(next(v for v in onwards if len(neighbours[v]) < 4))
    return edge


def grow(
    mesh: Mesh, faces: list[int], count: int, length: float, rng: np.random.RandomState
) -> Lashes:
    """``count`` hairs on a strip, some of them in tufts, about ``length`` times as long as it."""
    grid = _grid(mesh, faces)
    rows, columns = grid.shape
    followed = np.unique(grid)
    number = {int(v): i for i, v in enumerate(followed)}
    weights = np.zeros((count, POINTS, len(followed)))
    tufts = np.sort(rng.rand(count // 3))
    for h in range(count):
        foot = rng.rand()
        tuft = tufts[np.argmin(abs(tufts - foot))]
        end = foot + 0.55 * (tuft - foot) + 0.010 * rng.randn()
        reach = length * (0.62 + 0.38 * rng.rand()) * (0.55 + 0.45 * np.sin(np.pi * foot) ** 0.5)
        for p, t in enumerate(np.linspace(0, 1, POINTS)):
            u = np.clip(foot + (end - foot) * t**1.3, 0, 1) * (columns - 1)
            v = min(rows - 1.001, 1.0 + reach * t * (rows - 2.001))
            i, j = min(int(u), columns - 2), int(v)
            for di, wi in ((0, 1 - (u - i)), (1, u - i)):
                for dj, wj in ((0, 1 - (v - j)), (1, v - j)):
                    weights[h, p, number[int(grid[j + dj, i + di])]] += wi * wj
    return Lashes(followed, weights)
