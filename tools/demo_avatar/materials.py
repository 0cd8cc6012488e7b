# SPDX-License-Identifier: Apache-2.0
"""The head's materials: Blender node graphs for skin, eyes, teeth, lashes, hair and cloth.

Colours are linear RGB in 0..1, lengths metres. Patterns live in object coordinates (metres) or in
the base mesh's UV map, so they stick to the surface when the face moves.
"""

from __future__ import annotations

import pathlib
from typing import Any

import bpy

Colour = tuple[float, float, float]

IRIS = (
    (0.185, (0.10, 0.05, 0.02)),
    (0.30, (0.17, 0.09, 0.035)),
    (0.40, (0.09, 0.045, 0.02)),
    (0.445, (0.03, 0.02, 0.015)),
    (0.50, (0.74, 0.70, 0.67)),
    (0.80, (0.72, 0.62, 0.58)),
)
"""Eye colours outside the pupil, by distance from its middle as a part of the eyeball's radius:
brown iris, its dark rim, the white, and the reddish white at the lids."""

SKIN_REGIONS = (
    ("lips", 0.75, (0.50, 0.17, 0.15)),
    ("eyelids", 0.35, (0.50, 0.27, 0.20)),
    ("inside-mouth", 0.9, (0.35, 0.08, 0.08)),
    ("ears", 0.25, (0.62, 0.28, 0.22)),
)
"""MakeHuman's masks, how strongly each is tinted, and the tint."""


class Shader:
    """A new material and its node graph.

    A value given to a socket is another node's output socket, a number, or an RGB colour.
    """

    def __init__(self, name: str) -> None:
        self.material = bpy.data.materials.new(name)
        self.material.use_nodes = True
        self.nodes = self.material.node_tree.nodes
        self.links = self.material.node_tree.links

    @property
    def surface(self) -> Any:
        """The inputs of the Principled BSDF that a new material starts with."""
        return self.nodes["Principled BSDF"].inputs

    def settings(self, **values: Any) -> None:
        """Set the surface's inputs; an input's name is written with _ for each space."""
        for name, value in values.items():
            self.put(value, self.surface[name.replace("_", " ")])

    def put(self, value: Any, socket: Any) -> None:
        """Link a socket to ``value`` where that is an output, else set it."""
        if hasattr(value, "links"):
            self.links.new(value, socket)
        else:
            socket.default_value = (*value, 1) if isinstance(value, tuple) else value

    def position(self) -> Any:
        """The shaded point in the object's coordinates (metres)."""
        return self.nodes.new("ShaderNodeTexCoord").outputs["Object"]

    def axes(self, vector: Any) -> Any:
        """Outputs X, Y and Z of a vector."""
        node = self.nodes.new("ShaderNodeSeparateXYZ")
        self.links.new(vector, node.inputs[0])
        return node.outputs

    def math(self, operation: str, a: Any, b: Any = 0.0) -> Any:
        """One arithmetic operation; ``b`` means nothing to those of one operand."""
        node = self.nodes.new("ShaderNodeMath")
        node.operation = operation
        self.put(a, node.inputs[0])
        self.put(b, node.inputs[1])
        return node.outputs[0]

    def mix(self, factor: Any, a: Any, b: Any, mode: str = "MIX") -> Any:
        """Colour ``a`` at factor 0, ``b`` at factor 1."""
        node = self.nodes.new("ShaderNodeMix")
        node.data_type, node.blend_type = "RGBA", mode
        for number, value in ((0, factor), (6, a), (7, b)):  # the colour sockets among all types'
            self.put(value, node.inputs[number])
        return node.outputs[2]

    def noise(self, vector: Any, scale: float) -> Any:
        """A Perlin noise node of ``scale`` cells a unit."""
        node = self.nodes.new("ShaderNodeTexNoise")
        node.inputs["Scale"].default_value = scale
        self.links.new(vector, node.inputs["Vector"])
        return node

    def patches(self, vector: Any, scale: float, detail: float, low: float, high: float) -> Any:
        """Noise stretched so that ``low`` becomes 0 and ``high`` 1."""
        noise = self.noise(vector, scale)
        noise.inputs["Detail"].default_value = detail
        noise.inputs["Roughness"].default_value = 0.6
        stretch = self.nodes.new("ShaderNodeMapRange")
        stretch.inputs[1].default_value, stretch.inputs[2].default_value = low, high
        self.links.new(noise.outputs["Fac"], stretch.inputs[0])
        return stretch.outputs[0]

    def mask(self, path: pathlib.Path) -> Any:
        """A grey picture, looked up in the UV map; read as numbers, not as a colour."""
        node = self.nodes.new("ShaderNodeTexImage")
        node.image = bpy.data.images.load(str(path))
        node.image.colorspace_settings.name = "Non-Color"
        return node.outputs["Color"]


def plain(
    name: str,
    colour: Colour,
    roughness: float,
    scatter: float = 0.0,
    specular: float = 0.5,
    coat: float = 0.0,
) -> Any:
    """One colour, with the weights of light scattered below the surface and of a wet coat."""
    shader = Shader(name)
    shader.settings(
        Base_Color=colour,
        Roughness=roughness,
        Subsurface_Weight=scatter,
        Subsurface_Scale=0.004,
        Specular_IOR_Level=specular,
        Coat_Weight=coat,
        Coat_Roughness=0.03,
    )
    return shader.material


def skin(textures: pathlib.Path) -> Any:
    """Skin: two sizes of blotches, tinted regions, glossier lips, scattered light, fine pores."""
    shader = Shader("skin")
    here = shader.position()

    def region(name: str) -> Any:
        return shader.mask(textures / f"mpfb_{name}.jpg")

    wide = shader.patches(here, 18, 4, 0.35, 0.7)
    colour = shader.mix(wide, (0.60, 0.36, 0.26), (0.70, 0.45, 0.34))
    fine = shader.patches(here, 90, 3, 0.55, 0.75)
    colour = shader.mix(fine, colour, (0.62, 0.33, 0.25))
    for name, strength, tint in SKIN_REGIONS:
        colour = shader.mix(shader.math("MULTIPLY", region(name), strength), colour, tint)
    shader.settings(
        Base_Color=colour,
        Roughness=shader.mix(region("lips"), (0.52,) * 3, (0.34,) * 3),
        Subsurface_Weight=0.25,
        Subsurface_Scale=0.006,
        Specular_IOR_Level=0.42,
    )
    shader.surface["Subsurface Radius"].default_value = (1, 0.35, 0.15)  # red travels farthest
    pores = shader.nodes.new("ShaderNodeTexVoronoi")
    pores.inputs["Scale"].default_value = 700
    shader.links.new(here, pores.inputs["Vector"])
    bump = shader.nodes.new("ShaderNodeBump")
    bump.inputs["Strength"].default_value, bump.inputs["Distance"].default_value = 0.09, 0.001
    shader.links.new(pores.outputs["Distance"], bump.inputs["Height"])
    shader.links.new(bump.outputs["Normal"], shader.surface["Normal"])
    return shader.material


def eye(centre: Any, radius: float) -> Any:
    """An eyeball at ``centre`` that looks to -y: rings of colour around its axis, a wet coat."""
    shader = Shader("eye")
    here = shader.position()
    offset = shader.nodes.new("ShaderNodeVectorMath")
    offset.operation = "SUBTRACT"
    shader.links.new(here, offset.inputs[0])
    offset.inputs[1].default_value = centre
    axes = shader.axes(offset.outputs[0])
    flat = shader.nodes.new("ShaderNodeCombineXYZ")
    shader.links.new(axes["X"], flat.inputs["X"])
    shader.links.new(axes["Z"], flat.inputs["Z"])
    length = shader.nodes.new("ShaderNodeVectorMath")
    length.operation = "LENGTH"
    shader.links.new(flat.outputs[0], length.inputs[0])

    ramp = shader.nodes.new("ShaderNodeValToRGB")
    stops = ramp.color_ramp.elements
    stops[0].position, stops[0].color = 0.0, (0.002, 0.002, 0.002, 1)  # the pupil
    stops[1].position, stops[1].color = 0.165, (0.004, 0.004, 0.004, 1)
    for position, colour in IRIS:
        stops.new(position).color = (*colour, 1)
    rings = shader.math("DIVIDE", length.outputs["Value"], float(radius))
    shader.links.new(rings, ramp.inputs[0])
    grain = shader.noise(here, 900)
    colour = shader.mix(0.25, ramp.outputs["Color"], grain.outputs["Color"], "OVERLAY")
    shader.settings(
        Base_Color=colour,
        Roughness=0.25,
        Coat_Weight=1,
        Coat_Roughness=0.02,
        Subsurface_Weight=0.1,
        Subsurface_Scale=0.002,
    )
    return shader.material


def lash(density: float) -> Any:
    """Black stripes on the lash strips, transparent between; ``density`` is the black part."""
    shader = Shader("lash")
    shader.settings(Base_Color=(0.006, 0.004, 0.003), Roughness=0.7, Specular_IOR_Level=0.1)
    uv = shader.nodes.new("ShaderNodeUVMap")
    uv.uv_map = "UVMap"
    wobble = shader.noise(uv.outputs[0], 260)
    across = shader.axes(uv.outputs[0])["X"]
    stripes = shader.math(
        "ADD",
        shader.math("MULTIPLY", across, 1500.0),
        shader.math("MULTIPLY", wobble.outputs["Fac"], 2.6),
    )
    black = shader.math("LESS_THAN", shader.math("FRACT", stripes), density)
    shader.settings(Alpha=shader.math("MULTIPLY", black, 0.9))
    return shader.material


def hair(name: str, colour: Colour, roughness: float) -> Any:
    """Cycles' hair shader."""
    shader = Shader(name)
    shader.nodes.clear()
    fibre = shader.nodes.new("ShaderNodeBsdfHairPrincipled")
    fibre.parametrization = "COLOR"
    fibre.inputs["Color"].default_value = (*colour, 1)
    fibre.inputs["Roughness"].default_value = roughness
    fibre.inputs["Radial Roughness"].default_value = 0.6
    output = shader.nodes.new("ShaderNodeOutputMaterial")
    shader.links.new(fibre.outputs[0], output.inputs["Surface"])
    return shader.material


def cloth(front_y: float, neck_z: float) -> Any:
    """Blue cloth, transparent above a neckline that rises from ``neck_z`` towards the back."""
    shader = Shader("shirt")
    shader.settings(
        Base_Color=(0.045, 0.075, 0.105),
        Roughness=0.85,
        Sheen_Weight=0.25,
        Specular_IOR_Level=0.2,
    )
    axes = shader.axes(shader.position())
    behind = shader.math("SUBTRACT", axes["Y"], front_y + 0.055)
    neckline = shader.math("ADD", neck_z, shader.math("MULTIPLY", behind, 0.62))
    above = shader.math("SUBTRACT", axes["Z"], neckline)
    shader.settings(Alpha=shader.math("LESS_THAN", above, 0.0))
    return shader.material
