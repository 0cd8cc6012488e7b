# SPDX-License-Identifier: Apache-2.0
"""Export the head's exact geometry as a linear model (run by Blender's Python).

    python export_geometry.py ASSETS WORK

Vertices are linear in the action weights, through the subdivision too: P = base + sum w_a delta_a.
Writes WORK/geometry.npz: base (V x 3, metres), deltas (A x V x 3), actions, triangles (T x 3),
part (T, index into parts), camera (4 x 4, world to clip space).
"""

from __future__ import annotations

import argparse
import pathlib

import bpy
import numpy as np
from controls import ACTIONS, REST, SIDED
from head import Head

SIZE = (1280, 720)
PARTS = ("head", "eyel", "eyer", "teethupper", "teethlower", "tongue")


def vertices(head: Head, actions: dict[str, float]) -> list[np.ndarray]:
    """Subdivided vertices of each part in a pose."""
    head.pose(actions)
    graph = bpy.context.evaluated_depsgraph_get()
    out = []
    for name in PARTS:
        mesh = head.parts[name].evaluated_get(graph).to_mesh()
        v = np.empty(len(mesh.vertices) * 3, np.float32)
        mesh.vertices.foreach_get("co", v)
        out.append(v.reshape(-1, 3))
        head.parts[name].evaluated_get(graph).to_mesh_clear()
    return out


def triangles(head: Head) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of all parts (vertex numbers over all parts) and the part of each."""
    graph = bpy.context.evaluated_depsgraph_get()
    faces, parts, offset = [], [], 0
    for i, name in enumerate(PARTS):
        mesh = head.parts[name].evaluated_get(graph).to_mesh()
        mesh.calc_loop_triangles()
        t = np.empty(len(mesh.loop_triangles) * 3, np.int32)
        mesh.loop_triangles.foreach_get("vertices", t)
        faces.append(t.reshape(-1, 3) + offset)
        parts.append(np.full(len(t) // 3, i, np.int8))
        offset += len(mesh.vertices)
    return np.concatenate(faces), np.concatenate(parts)


def camera_matrix(head: Head) -> np.ndarray:
    """World to clip space, 4 x 4."""
    render = head.scene.render
    render.resolution_x, render.resolution_y = SIZE
    bpy.context.view_layer.update()
    camera = head.scene.camera
    graph = bpy.context.evaluated_depsgraph_get()
    projection = camera.calc_matrix_camera(graph, x=SIZE[0], y=SIZE[1])
    return np.array(projection @ camera.matrix_world.inverted(), np.float64)


def main() -> None:
    """Write WORK/geometry.npz."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("assets")
    parser.add_argument("work", type=pathlib.Path)
    args = parser.parse_args()
    head = Head(args.assets)
    names = sorted({a for group in (REST, *ACTIONS.values()) for a in group} | {"eyeBlinkLeft", "eyeBlinkRight"})
    actions = [n for a in names for n in ((a + "Left", a + "Right") if a in SIDED else (a,))]
    base = np.concatenate(vertices(head, {}))
    deltas = np.stack([np.concatenate(vertices(head, {a: 1.0})) - base for a in actions])
    faces, part = triangles(head)
    np.savez(args.work / "geometry.npz", base=base, deltas=deltas.astype(np.float32), actions=actions, triangles=faces, part=part, parts=PARTS, camera=camera_matrix(head), cz=head.cz, front=head.front)
    print(f"{len(base)} vertices, {len(faces)} triangles, {len(actions)} actions")


if __name__ == "__main__":
    main()
