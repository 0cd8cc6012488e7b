# SPDX-License-Identifier: Apache-2.0
"""What surrounds the person: lights, the room behind, the camera and the renderer's settings.

Metres, z up; the camera looks to +y.
"""

from __future__ import annotations

import math
from typing import Any

import bpy
import materials
import mathutils
import numpy as np
from layout import CAMERA_DISTANCE, CAMERA_RAISED, Layout
from person import Colour
from strands import Face

APERTURE_MM = 34
"""The lens opening's width when the room is rendered: how far out of focus it is."""
ROOM = "room"
"""What the names of the objects behind the person begin with."""


class Stage:
    """Lights, room and camera of one scene."""

    def __init__(self, scene: Any, face: Face, layout: Layout) -> None:
        self.scene, self.face = scene, face
        self._add_lights()
        self._add_room(np.random.RandomState(5))
        self._add_camera(layout)
        self._choose_renderer()

    def _link(self, name: str, data: Any) -> Any:
        """A new object of the scene."""
        thing = bpy.data.objects.new(name, data)
        self.scene.collection.objects.link(thing)
        return thing

    # ------------------------------------------------------------ light
    def _add_lights(self) -> None:
        """Key from the left of the picture, fill from its right, two rims from behind, and a soft
        one just below the lens, which reaches into the mouth."""
        front, eye = self.face.front_y, self.face.eye_z
        face = (0.0, front, eye - 0.03)
        self._light((-0.75, front - 0.85, eye + 0.48), 0.70, 17.0, (1, 0.945, 0.88), face)  # key
        self._light((0.95, front - 0.75, eye + 0.12), 0.9, 3.8, (0.96, 0.97, 1), face)  # fill
        self._light((0.75, front + 0.75, eye + 0.45), 0.35, 7.0, (0.93, 0.96, 1), face)  # rim
        self._light((-0.80, front + 0.80, eye + 0.55), 0.35, 4.5, (1, 0.94, 0.87), face)  # rim
        self._light((0.0, front - 1.15, eye - 0.16), 0.30, 6.5, (1, 0.97, 0.95), face, False)
        world = bpy.data.worlds.new("world")
        self.scene.world = world
        world.use_nodes = True
        sky = world.node_tree.nodes["Background"].inputs
        sky["Color"].default_value, sky["Strength"].default_value = (0.43, 0.43, 0.44, 1), 0.22

    def _light(
        self,
        place: tuple[float, float, float],
        size: float,
        watts: float,
        colour: Colour,
        aim: tuple[float, float, float],
        mirrored: bool = True,
    ) -> None:
        """A square area light of ``size`` metres at ``place`` that shines at ``aim``.

        One that is not ``mirrored`` leaves no highlights: eyes would show it in the pupil.
        """
        data = bpy.data.lights.new("area", "AREA")
        data.size, data.energy, data.color = size, watts, colour
        light = self._link("area", data)
        light.location, light.visible_glossy = place, mirrored
        direction = mathutils.Vector(aim) - mathutils.Vector(place)
        light.rotation_euler = direction.to_track_quat("-Z", "Y").to_euler()

    # ------------------------------------------------------------ the room behind
    def _box(self, low: tuple[float, ...], high: tuple[float, ...], material: Any) -> None:
        """A box between two corners."""
        (x0, y0, z0), (x1, y1, z1) = low, high
        corners = [(x, y, z) for z in (z0, z1) for x, y in ((x0, y0), (x1, y0), (x1, y1), (x0, y1))]
        faces = [
            (0, 1, 2, 3),
            (4, 5, 6, 7),
            *((k, (k + 1) % 4, (k + 1) % 4 + 4, k + 4) for k in range(4)),
        ]
        data = bpy.data.meshes.new(ROOM)
        data.from_pydata(corners, [], faces)
        data.materials.append(material)
        thing = self._link(ROOM, data)
        thing.visible_shadow = False
        thing.visible_diffuse = thing.visible_glossy = thing.visible_transmission = False

    def _add_room(self, rng: np.random.RandomState) -> None:
        """An office: a window on the left, a shelf with books and a plant on the right, a lamp.

        It is seen out of focus, and glows by itself, so that it needs no lights of its own.
        """
        eye = self.face.eye_z

        def paint(colour: Colour, strength: float = 1.0) -> Any:
            return materials.glow(ROOM, colour, strength)

        def box(x: tuple[float, float], y: float, z: tuple[float, float], material: Any) -> None:
            self._box((x[0], y, eye + z[0]), (x[1], y + 0.02, eye + z[1]), material)

        box((-4, 4), 3.6, (-2, 3), paint((0.27, 0.265, 0.255)))  # wall
        box((-4, 4), 3.55, (-2, -0.62), paint((0.19, 0.175, 0.16)))
        # window with sky, trees below, and its frame
        box((-1.75, -0.52), 3.5, (-0.45, 1.5), paint((0.62, 0.74, 0.88), 0.95))
        box((-1.75, -0.52), 3.49, (-0.45, 0.02), paint((0.36, 0.45, 0.36), 0.8))
        for _ in range(26):
            x, z = -1.7 + 1.15 * rng.rand(), -0.35 + 0.5 * rng.rand()
            green = (0.24 + 0.1 * rng.rand(), 0.34 + 0.12 * rng.rand(), 0.22)
            box((x, x + 0.14), 3.48, (z, z + 0.12), paint(green, 0.75))
        frame = paint((0.50, 0.50, 0.50), 0.6)
        for x in (-1.79, -1.15, -0.54):
            box((x, x + 0.06), 3.46, (-0.5, 1.5), frame)
        box((-1.79, -0.48), 3.45, (-0.52, -0.45), paint((0.55, 0.54, 0.52), 0.7))
        # shelf
        wood = paint((0.26, 0.155, 0.088))
        for z in (-0.62, -0.24, 0.14, 0.52):
            box((0.46, 1.9), 3.2, (z, z + 0.035), wood)
        for x in (0.44, 1.88):
            box((x, x + 0.04), 3.21, (-0.9, 0.62), wood)
        box((0.46, 1.9), 3.4, (-0.9, 0.6), paint((0.15, 0.128, 0.11)))
        palette = (
            (0.33, 0.07, 0.05),
            (0.05, 0.13, 0.22),
            (0.42, 0.36, 0.27),
            (0.07, 0.18, 0.13),
            (0.36, 0.21, 0.06),
            (0.20, 0.20, 0.22),
            (0.50, 0.48, 0.44),
        )
        for shelf in (-0.585, -0.205, 0.175):
            x = 0.52
            while x < 1.8:
                wide, tall = 0.025 + 0.05 * rng.rand(), 0.17 + 0.13 * rng.rand()
                if rng.rand() < 0.78:
                    colour = palette[rng.randint(len(palette))]
                    box((x, x + wide), 3.18, (shelf, shelf + tall), paint(colour, 0.75))
                else:
                    wide = 0.12 * rng.rand()
                x += wide + 0.006
        # plant between window and shelf, a lamp above it
        for _ in range(46):
            a, r = rng.rand() * 3.1, 0.10 + 0.24 * rng.rand()
            x, z = 0.02 + r * math.cos(a), -0.25 + r * math.sin(a) * 1.4
            green = (0.06 + 0.04 * rng.rand(), 0.11 + 0.07 * rng.rand(), 0.055)
            box((x - 0.04, x + 0.04), 3.0, (z - 0.05, z + 0.05), paint(green, 0.8))
        box((-0.10, 0.14), 2.99, (-0.75, -0.32), paint((0.42, 0.34, 0.28), 0.6))
        box((0.98, 1.16), 2.9, (0.60, 0.74), paint((1.0, 0.72, 0.42), 2.2))
        box((0.24, 0.28), 3.1, (0.86, 0.90), paint((1.0, 0.80, 0.55), 6.0))
        box((1.62, 1.66), 3.1, (0.95, 0.99), paint((1.0, 0.80, 0.55), 6.0))

    # ------------------------------------------------------------ camera
    def _add_camera(self, layout: Layout) -> None:
        """A lens level with the eyes, whose shift puts them into their row without tilting it."""
        data = bpy.data.cameras.new("camera")
        data.sensor_fit, data.sensor_height = "VERTICAL", 24
        data.lens = layout.scale * CAMERA_DISTANCE * data.sensor_height / layout.height
        axis_row = layout.eyes_row - CAMERA_RAISED * layout.scale
        data.shift_y = (axis_row - layout.height / 2) / layout.height
        data.dof.use_dof = False
        data.dof.focus_distance = CAMERA_DISTANCE + 0.03
        data.dof.aperture_fstop = data.lens / APERTURE_MM
        camera = self._link("camera", data)
        camera.location = (0, self.face.front_y - CAMERA_DISTANCE, self.face.eye_z + CAMERA_RAISED)
        camera.rotation_euler = (math.pi / 2, 0, 0)
        self.scene.camera = camera

    def _choose_renderer(self) -> None:
        """Cycles on the CPU with its denoiser; film-like tone curves would pale skin and teeth."""
        scene = self.scene
        scene.render.engine, scene.render.use_persistent_data = "CYCLES", True
        cycles = scene.cycles
        cycles.device = "CPU"
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.use_adaptive_sampling, cycles.adaptive_threshold = True, 0.03
        cycles.max_bounces = 6
        scene.cycles_curves.shape = "RIBBONS"
        view = scene.view_settings
        view.view_transform, view.look = "Standard", "None"
        view.exposure = 0.05
