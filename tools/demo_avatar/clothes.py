# SPDX-License-Identifier: Apache-2.0
"""The shirt: cloth that hangs over the shoulders in folds, a turned-down collar, and buttons.

The cloth begins as a loose copy of the skin, a little larger than the body, and is let fall by
Blender's cloth simulation; it does not move with the poses. What was simulated is kept in a file.
Metres, z up, the face looking to -y.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import bpy
import materials
import mathutils
import numpy as np
from body import Points, metres
from mathutils.bvhtree import BVHTree
from strands import smooth, unit

if TYPE_CHECKING:
    from head import Head

FRAMES = 30
"""Steps that the cloth is let fall, 24 a second."""
OFF_SKIN, LARGER = 0.008, 0.09
"""Metres between skin and cloth at first; by what part the cloth is larger than that."""
FALL, POINT = 0.042, 0.014
"""Metres: how far the collar falls back, and how much more at its points."""
OPEN_DEGREES = 9.0
"""Half of the opening between the collar's front ends, seen from the neck."""


class Neckline:
    """The curve around the neck on which the collar stands; ``turn`` is 0 behind, pi in front."""

    def __init__(self, head: Head, skin: BVHTree) -> None:
        face = head.face
        self._skin, self._chin_z = skin, face.chin_z
        style = head.person.clothes
        self._first = style.first
        self.axis = np.array([0.0, face.front_y + style.neck, 0.0])
        self._turns = np.linspace(-np.pi, np.pi, 73)
        heights = np.array([self._root(turn) for turn in self._turns])
        kernel = np.hanning(11) / np.hanning(11).sum()
        ring = np.convolve(np.r_[heights[-11:-1], heights, heights[1:11]], kernel, mode="same")
        front = smooth(abs(self._turns), 1.75, np.pi - np.radians(OPEN_DEGREES))
        self._heights = ring[10:-10] - style.open_neck * front

    def _root(self, turn: float) -> float:
        """Height (z) at which the neck widens into the shoulders or the chest."""
        high = self._chin_z - 0.022
        narrow = min(self._radius(turn, high - k * 0.006) for k in range(4))
        for z in np.arange(high - self._first, high - 0.085, -0.003):
            if self._radius(turn, z) > narrow + 0.010:
                return float(z)
        return high - 0.085

    def _radius(self, turn: float, z: float) -> float:
        """From the neck's axis to the skin in direction ``turn`` at height ``z``."""
        start = mathutils.Vector(self.axis + np.array([0.0, 0.0, z]))
        away = mathutils.Vector((np.sin(turn), np.cos(turn), 0.0))
        found, _, _, far = self._skin.ray_cast(start, away)
        return float(far) if found is not None else 0.2

    def height(self, turn: Points) -> Points:
        """z of the collar's foot: where the neck begins, falling to the open front."""
        out: Points = np.interp(turn, self._turns, self._heights)
        return out

    def place(self, turn: float, rise: float = 0.0) -> Points:
        """The skin in direction ``turn`` at the collar's foot, ``rise`` metres above it."""
        z = float(self.height(np.array(turn))) + rise
        away = np.array([np.sin(turn), np.cos(turn), 0.0])
        far = min(self._radius(turn, z), 0.125)
        out: Points = self.axis + np.array([0.0, 0.0, z]) + far * away
        return out

    def below(self, places: Points) -> Points:
        """How far places (N x 3) are from the opening for neck and head, metres: below or beside
        it; negative inside of it."""
        offset = places - self.axis
        turn = np.arctan2(offset[:, 0], offset[:, 1])
        down = self.height(turn) - places[:, 2]
        ring = np.array([np.linalg.norm((self.place(t) - self.axis)[:2]) for t in self._turns])
        reach = np.interp(turn, self._turns, ring)
        beside = np.hypot(offset[:, 0], offset[:, 1]) - reach - 1.4 * OFF_SKIN
        head = places[:, 2] > self._chin_z - 0.014
        out: Points = np.where(head, -1.0, np.maximum(down, beside))
        return out


def dress(head: Head, torso: list[int], cache: pathlib.Path) -> None:
    """Add shirt, collar, placket and buttons to the scene. ``torso``: the skin's faces."""
    mesh, used = head.body.mesh, head.body.used(torso)
    number = {vertex: i for i, vertex in enumerate(used)}
    places = metres(mesh.vertices[used])
    faces = [[number[vertex] for vertex in mesh.faces[k]] for k in torso]
    neckline = Neckline(head, BVHTree.FromPolygons(places.tolist(), faces))
    kept = cache / f"shirt-{head.person.name}.npz"
    if not kept.exists():
        vertices, quads = _fall(head, places, faces, neckline)
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, vertices=vertices, quads=quads)
    with np.load(kept) as saved:
        vertices, quads = saved["vertices"], saved["quads"]
    style = head.person.clothes
    cloth = materials.cloth(style.cloth, style.weave)
    cut = materials.cloth(style.cloth, style.weave, cut=True)
    shirt = head.surface("shirt", vertices, quads.tolist(), cut, 2)
    below = shirt.data.attributes.new("below", "FLOAT", "POINT")
    below.data.foreach_set("value", neckline.below(vertices).astype(np.float32))
    _thicken(shirt, 0.0010)
    outside = BVHTree.FromPolygons(vertices.tolist(), quads.tolist())
    _add_collar(head, neckline, outside, cloth)
    _add_placket(head, neckline, outside, cloth)


def _thicken(thing: Any, metres_thick: float) -> None:
    """Give a surface a thickness inwards."""
    thick = thing.modifiers.new("thick", "SOLIDIFY")
    thick.thickness, thick.offset = metres_thick, -1


# ---------------------------------------------------------------- the cloth
def _fall(
    head: Head, places: Points, faces: list[list[int]], neckline: Neckline
) -> tuple[Points, Points]:
    """The cloth after it has fallen: vertices and quads."""
    body = head.surface("falls on", places, faces, None, 0)
    body.modifiers.new("collision", "COLLISION")
    body.collision.thickness_outer, body.collision.cloth_friction = 0.004, 12.0
    centres = np.array([places[face].mean(0) for face in faces])
    below = neckline.below(centres)
    outer = [face for face, down in zip(faces, below, strict=True) if down > -0.012]
    kept = np.unique(np.concatenate(outer))
    number = {int(vertex): i for i, vertex in enumerate(kept)}
    outer = [[number[vertex] for vertex in face] for face in outer]
    cloth = head.surface("cloth", places[kept], outer, None, 0)
    _loosen(cloth)
    vertices = np.empty(len(cloth.data.vertices) * 3)
    cloth.data.vertices.foreach_get("co", vertices)
    down = neckline.below(vertices.reshape(-1, 3))
    pins = cloth.vertex_groups.new(name="pins")
    pins.add(np.nonzero(down < 0.016)[0].tolist(), 1.0, "REPLACE")
    modifier = cloth.modifiers.new("cloth", "CLOTH")
    settings = modifier.settings
    settings.quality, settings.mass, settings.vertex_group_mass = 4, 0.25, "pins"
    settings.shrink_min = -LARGER
    settings.tension_stiffness = settings.compression_stiffness = 18
    settings.shear_stiffness, settings.bending_stiffness = 6, 0.2
    settings.tension_damping = settings.compression_damping = 8
    settings.air_damping = 2.0
    modifier.collision_settings.distance_min = 0.004
    modifier.point_cache.frame_start, modifier.point_cache.frame_end = 1, FRAMES
    for frame in range(1, FRAMES + 1):
        head.scene.frame_set(frame)
    evaluated = cloth.evaluated_get(bpy.context.evaluated_depsgraph_get())
    made = evaluated.to_mesh()
    out = np.empty(len(made.vertices) * 3)
    made.vertices.foreach_get("co", out)
    quads = [list(polygon.vertices) for polygon in made.polygons]
    evaluated.to_mesh_clear()
    head.scene.frame_set(1)
    for thing in (cloth, body):
        bpy.data.objects.remove(thing, do_unlink=True)
    return out.reshape(-1, 3), np.array(quads)


def _loosen(cloth: Any) -> None:
    """Divide the cloth finely and lift it off the skin, for good."""
    data = cloth.data
    finer = cloth.modifiers.new("finer", "SUBSURF")
    finer.levels = 1
    off = cloth.modifiers.new("off", "DISPLACE")
    off.strength, off.mid_level = OFF_SKIN, 0
    cloth.data = bpy.data.meshes.new_from_object(
        cloth.evaluated_get(bpy.context.evaluated_depsgraph_get())
    )
    cloth.modifiers.clear()
    bpy.data.meshes.remove(data)


# ---------------------------------------------------------------- collar and buttons
def _lifted(outside: BVHTree, place: Points, least: float) -> Points:
    """``place``, moved out of the shirt until it is ``least`` metres before it."""
    found, normal, _, far = outside.find_nearest(mathutils.Vector(place))
    if found is None or far > 0.05:
        return place
    height = float(np.dot(place - np.array(found), np.array(normal)))
    return place + np.array(normal) * max(0.0, least - height)


def _even(places: Points, width: int = 7) -> Points:
    """A row of places (N x 3), smoothed along the row; its ends stay."""
    padded = np.concatenate(
        [
            2 * places[:1] - places[width:0:-1],
            places,
            2 * places[-1:] - places[-2 : -width - 2 : -1],
        ]
    )
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    out = np.stack([np.convolve(padded[:, k], kernel, mode="same") for k in range(3)], 1)
    return out[width:-width]


def _add_collar(head: Head, neckline: Neckline, outside: BVHTree, cloth: Any) -> None:
    """A band that stands around the neck and falls back outwards, longer at its two points."""
    wave = np.random.RandomState(head.person.seed + 3).rand(2) * 6
    last = np.pi - np.radians(OPEN_DEGREES)
    turns = np.linspace(-last, last, 81)
    aways = np.stack([np.sin(turns), np.cos(turns), 0 * turns], 1)
    forward, tip = smooth(abs(turns), 1.6, last), smooth(abs(turns), 2.2, last)
    tall = head.person.clothes.stand * (1 - 0.40 * forward)
    feet = _even(np.array([neckline.place(turn) for turn in turns])) + 0.005 * aways
    lean = np.array([0.0, 0.10, 1.0]) - 0.22 * aways * (1 - forward[:, None])
    up = lean / np.linalg.norm(lean, axis=1, keepdims=True)
    tops = feet + tall[:, None] * up
    necks = np.array([neckline.place(t, h) for t, h in zip(turns, tall, strict=True)])
    inside = ((necks + 0.004 * aways - tops) * aways).sum(1)
    tops = _even(tops + np.maximum(0, inside)[:, None] * aways)
    rows = []
    for k, turn in enumerate(turns):
        away, foot, top = aways[k], feet[k], tops[k]
        long = FALL + POINT * tip[k] + 0.0012 * np.sin(3 * turn + wave[0])
        # Along the open front it falls to the side; at the ends it slants from the chest's middle.
        slant = np.array([np.sign(turn), 0.0, 0.0]) * 0.016 * tip[k]
        aside = 0.75 * float(smooth(np.array(abs(turn)), 1.55, 2.3)) * (1 - 0.55 * tip[k])
        down = np.array([0.0, 0.0, -1.0]) + 0.45 * away
        down = unit((1 - aside) * down + aside * np.array([np.sign(turn), 0.0, 0.0]))
        hem = neckline.place(turn, -0.012) + 0.003 * away
        column = [hem, foot, (foot + top) / 2 + 0.001 * away, top]
        column.append(top + 0.0022 * up[k] + 0.0030 * away)
        column += [
            top + 0.006 * away + down * long * part + slant * part
            for part in (0.07, 0.3, 0.55, 0.8, 1.0)
        ]
        for j in range(5, len(column)):
            column[j] = _lifted(
                outside, column[j], 0.0035 + 0.002 * np.sin(2 * turn + wave[1]) ** 2
            )
        rows.append(column)
    points, n = np.array(rows), len(rows[0])
    for j in range(5, n):
        points[:, j] = _even(points[:, j], 11)
    faces = [
        [i * n + k, i * n + k + 1, (i + 1) * n + k + 1, (i + 1) * n + k]
        for i in range(len(rows) - 1)
        for k in range(n - 1)
    ]
    collar = head.surface("collar", points.reshape(-1, 3), faces, cloth, 2)
    _thicken(collar, 0.0014)


def _add_placket(head: Head, neckline: Neckline, outside: BVHTree, cloth: Any) -> None:
    """The strip with the buttons, down the middle of the chest."""
    top = float(neckline.height(np.array(np.pi))) + 0.016
    rows, button_z = [], []
    for k, z in enumerate(np.arange(top, top - 0.36, -0.012)):
        row = []
        for x in np.linspace(-0.0165, 0.0165, 7):
            start = mathutils.Vector((x, head.face.front_y - 0.3, z))
            found, _, _, _ = outside.ray_cast(start, mathutils.Vector((0, 1, 0)))
            y = found[1] if found is not None else (row[-1][1] if row else head.face.front_y + 0.05)
            row.append((x, y - (0.0016 if abs(x) < 0.016 else 0.0002), z))
        rows.append(row)
        if k % 7 == 1:
            button_z.append((min(point[1] for point in row) - 0.0022, z))
    n = len(rows[0])
    faces = [
        [i * n + k, (i + 1) * n + k, (i + 1) * n + k + 1, i * n + k + 1]
        for i in range(len(rows) - 1)
        for k in range(n - 1)
    ]
    head.surface("placket", np.array(rows, float).reshape(-1, 3), faces, cloth, 1)
    bone = materials.plain("button", (0.50, 0.48, 0.45), 0.25, coat=0.4)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    for y, z in button_z:
        rings = [
            np.stack([r * np.cos(angle), np.full(20, y - d), z + r * np.sin(angle)], 1)
            for r, d in ((0.0055, 0.0), (0.0055, 0.0014), (0.0046, 0.0018), (0.0036, 0.0011))
        ]
        points = np.concatenate([*rings, [[0.0, y - 0.0010, z]]])
        sides = [
            [i * 20 + k, (i + 1) * 20 + k, (i + 1) * 20 + (k + 1) % 20, i * 20 + (k + 1) % 20]
            for i in range(3)
            for k in range(20)
        ]
        caps = [[60 + k, 80, 60 + (k + 1) % 20] for k in range(20)]
        head.surface("button", points, sides + caps, bone, 0)
