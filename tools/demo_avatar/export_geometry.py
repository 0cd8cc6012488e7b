# SPDX-License-Identifier: Apache-2.0
"""Export the head's exact geometry as a linear model (run by Blender's Python).

    python export_geometry.py ASSETS WORK [--person ben]

Vertices are linear in the action weights, through the subdivision too: P = base + sum w_a delta_a.
Writes WORK/geometry.npz: base (V x 3, metres), deltas (A x V x 3), actions, triangles (T x 3),
part (T, index into parts), camera (4 x 4, world to clip space), cz (the eyes' z) and front (the
foremost y of the face between the eyes), metres; person, layout (width, height, eyes' and lips'
row) and scale (pixels a metre). Says where eyes and lips really are, to check the layout by.
"""

from __future__ import annotations

import argparse
import pathlib

import bpy
import numpy as np
from body import metres
from controls import ACTIONS, BROWS, CONTROLS, REST, SIDED, to_actions
from head import LIP_LOWER, LIP_UPPER, Head
from numpy.typing import NDArray
from person import PEOPLE

PARTS = (
    *("head", "eyel", "eyer", "teethupper", "teethlower"),
    *("gumupper", "gumlower", "tongue"),
)
"""What hides and shows in the mouth; lashes, hair and cloth are left out."""


def all_actions() -> list[str]:
    """Face actions that the demo person ever uses, in both sides' names."""
    names = {action for group in (REST, *ACTIONS.values()) for action in group}
    names |= {"tongueRaise", "tongueOut", *BROWS, "eyeBlinkLeft", "eyeBlinkRight"}
    sides = {name: ("Left", "Right") if name in SIDED else ("",) for name in names}
    return [name + side for name in sorted(names) for side in sides[name]]


def vertices(head: Head, actions: dict[str, float]) -> NDArray[np.float32]:
    """Subdivided vertices of all parts in a pose, V x 3, metres."""
    head.pose(actions)
    graph = bpy.context.evaluated_depsgraph_get()
    out = []
    for name in PARTS:
        mesh = head.parts[name].evaluated_get(graph).to_mesh()
        places = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", places)
        out.append(places.reshape(-1, 3))
        head.parts[name].evaluated_get(graph).to_mesh_clear()
    return np.concatenate(out)


def triangles(head: Head) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Triangles of all parts (T x 3 vertex numbers over all parts) and the part of each (T)."""
    graph = bpy.context.evaluated_depsgraph_get()
    faces, parts, offset = [], [], 0
    for i, name in enumerate(PARTS):
        mesh = head.parts[name].evaluated_get(graph).to_mesh()
        mesh.calc_loop_triangles()
        corners = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        mesh.loop_triangles.foreach_get("vertices", corners)
        faces.append(corners.reshape(-1, 3) + offset)
        parts.append(np.full(len(corners) // 3, i, np.int8))
        offset += len(mesh.vertices)
    return np.concatenate(faces), np.concatenate(parts)


def camera_matrix(head: Head) -> NDArray[np.float64]:
    """World to clip space, 4 x 4."""
    render = head.scene.render
    width, height = head.layout.width, head.layout.height
    render.resolution_x, render.resolution_y = width, height
    bpy.context.view_layer.update()
    camera = head.scene.camera
    graph = bpy.context.evaluated_depsgraph_get()
    projection = camera.calc_matrix_camera(graph, x=width, y=height)
    return np.array(projection @ camera.matrix_world.inverted(), np.float64)


def row_of(head: Head, place: NDArray[np.float64]) -> float:
    """The picture's row of a place (metres)."""
    clip = camera_matrix(head) @ np.array([*place, 1.0])
    return float((1 - clip[1] / clip[3]) / 2 * head.layout.height)


def main() -> None:
    """Write WORK/geometry.npz."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets")
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument("--person", choices=PEOPLE, default="ada")
    args = parser.parse_args()
    head = Head(args.assets, PEOPLE[args.person])
    actions = all_actions()
    base = vertices(head, {})
    deltas = np.stack([vertices(head, {action: 1.0}) - base for action in actions])
    faces, part = triangles(head)
    layout = head.layout
    np.savez(
        args.work / "geometry.npz",
        base=base,
        deltas=deltas.astype(np.float32),
        actions=actions,
        triangles=faces,
        part=part,
        parts=PARTS,
        camera=camera_matrix(head),
        cz=head.face.eye_z,
        front=head.face.front_y,
        person=args.person,
        layout=[layout.width, layout.height, layout.eyes_row, layout.lips_row],
        scale=layout.scale,
    )
    rest = metres(head.body.posed(to_actions([0.0] * len(CONTROLS))))
    lips = row_of(head, rest[[LIP_UPPER, LIP_LOWER]].mean(0))
    eyes = row_of(head, np.array([0.0, head.face.front_y, head.face.eye_z]))
    print(f"eyes in row {eyes:.1f}, layout says {layout.eyes_row}")
    print(f"lips in row {lips:.1f}, layout says {layout.lips_row}")
    print(f"{len(base)} vertices, {len(faces)} triangles, {len(actions)} actions")


if __name__ == "__main__":
    main()
