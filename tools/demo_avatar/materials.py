# SPDX-License-Identifier: Apache-2.0
"""The materials: Blender node graphs for skin, eyes, teeth, hair, cloth and what stands behind.

Colours are linear RGB in 0..1, lengths metres. Patterns live in the attribute "rest" (a surface's
place at rest, metres) or in the base mesh's UV map, so they stick to the skin when it moves.
"""

from __future__ import annotations

import pathlib
from typing import Any

import bpy
from person import Colour, Person


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
        return self.stretch(noise.outputs["Fac"], low, high)

    def stretch(self, value: Any, low: float, high: float) -> Any:
        """A number with ``low`` moved to 0 and ``high`` to 1, clamped."""
        node = self.nodes.new("ShaderNodeMapRange")
        node.inputs[1].default_value, node.inputs[2].default_value = low, high
        self.links.new(value, node.inputs[0])
        return node.outputs[0]

    def attribute(self, name: str) -> Any:
        """A mesh's attribute; its Fac and Vector outputs are the number and the vector."""
        node = self.nodes.new("ShaderNodeAttribute")
        node.attribute_name = name
        return node.outputs

    def scaled(self, vector: Any, factors: tuple[float, float, float]) -> Any:
        """A vector times a constant one."""
        node = self.nodes.new("ShaderNodeVectorMath")
        node.operation = "MULTIPLY"
        self.links.new(vector, node.inputs[0])
        node.inputs[1].default_value = factors
        return node.outputs[0]

    def cells(self, vector: Any, scale: float, output: str = "Distance") -> Any:
        """A Voronoi pattern of ``scale`` cells a unit."""
        node = self.nodes.new("ShaderNodeTexVoronoi")
        node.inputs["Scale"].default_value = scale
        self.links.new(vector, node.inputs["Vector"])
        return node.outputs[output]

    def bump(self, height: Any, metres: float) -> None:
        """Let the surface look as if it were raised by ``height`` times ``metres``."""
        node = self.nodes.new("ShaderNodeBump")
        node.inputs["Strength"].default_value = 1.0
        node.inputs["Distance"].default_value = metres
        self.links.new(height, node.inputs["Height"])
        self.links.new(node.outputs["Normal"], self.surface["Normal"])

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


def skin(person: Person, textures: pathlib.Path) -> Any:
    """Skin: patches of two tones, zones that blood or hair tints, pores, lines in the lips.

    Patterns are looked up by the mesh's attribute "rest" (its neutral place, metres), so they move
    with the skin; "flush", "hollow", "beard", "scalp" and "oil" are its zones, 0..1.
    """
    tone = person.skin
    shader = Shader("skin")
    here = shader.attribute("rest")["Vector"]

    def region(name: str) -> Any:
        return shader.mask(textures / f"mpfb_{name}.jpg")

    def zone(name: str) -> Any:
        return shader.attribute(name)["Fac"]

    def times(a: Any, b: Any) -> Any:
        return shader.math("MULTIPLY", a, b)

    lips = region("lips")
    wide = shader.patches(here, 26, 4, 0.35, 0.68)
    colour = shader.mix(wide, tone.light, tone.deep)
    mottled = shader.patches(here, 210, 3, 0.40, 0.75)
    colour = shader.mix(times(mottled, 0.32), colour, tone.flush)
    pores = shader.cells(here, 760)
    dark = shader.math("SUBTRACT", 1.0, shader.stretch(pores, 0.05, 0.45))
    colour = shader.mix(times(dark, 0.20), colour, tone.deep, "MULTIPLY")
    blood = shader.math("MULTIPLY_ADD", shader.patches(here, 60, 3, 0.3, 0.7), 0.5)
    blood.node.inputs[2].default_value = 0.6
    colour = shader.mix(times(times(zone("flush"), blood), tone.flushed), colour, tone.flush)
    colour = shader.mix(times(zone("hollow"), 0.30), colour, (0.36, 0.20, 0.19))
    spots = shader.stretch(shader.cells(here, 230), 0.16, 0.06)
    sparse = shader.patches(here, 95, 1, 0.52, 0.60)
    freckled = times(times(spots, sparse), times(zone("freckled"), tone.freckles))
    colour = shader.mix(freckled, colour, (0.33, 0.155, 0.085))
    stubble = times(shader.stretch(shader.cells(here, 1150), 0.42, 0.16), 0.75)
    shadow = times(zone("beard"), tone.stubble)
    colour = shader.mix(times(shadow, 0.42), colour, (0.33, 0.235, 0.205))
    colour = shader.mix(times(times(shadow, stubble), 0.8), colour, (0.06, 0.042, 0.035))
    colour = shader.mix(times(zone("scalp"), 0.82), colour, person.hair.colour)
    lines = shader.patches(shader.scaled(here, (1100, 260, 170)), 1, 2, 0.35, 0.7)
    lip_tone = shader.mix(times(lines, 0.35), tone.lips, tuple(0.72 * c for c in tone.lips))
    for mask, strength, tint in (
        (lips, 0.78, lip_tone),
        (region("eyelids"), 0.22, (0.50, 0.25, 0.19)),
        (region("inside-mouth"), 0.85, (0.46, 0.13, 0.12)),
        (region("ears"), 0.25, (0.62, 0.28, 0.22)),
    ):
        colour = shader.mix(times(mask, strength), colour, tint)
    uneven = shader.patches(here, 340, 3, 0.3, 0.75)
    rough = shader.math("MULTIPLY_ADD", uneven, 0.16)
    rough.node.inputs[2].default_value = 0.40
    rough = shader.math("SUBTRACT", rough, times(zone("oil"), 0.09))
    wet = shader.math("MAXIMUM", lips, region("inside-mouth"))
    shader.settings(
        Base_Color=colour,
        Roughness=shader.mix(wet, rough, (0.27,) * 3),
        Subsurface_Weight=0.55,
        Subsurface_Scale=0.0042,
        Specular_IOR_Level=0.5,
    )
    shader.surface["Subsurface Radius"].default_value = (1, 0.36, 0.18)  # red travels farthest
    grain = shader.math("ADD", times(shader.stretch(pores, 0.0, 0.5), 0.9), times(uneven, 0.8))
    height = shader.mix(lips, grain, times(lines, 1.6))
    shader.bump(height, 0.00015)
    return shader.material


def eye(centre: Any, radius: float, iris: tuple[Colour, Colour]) -> Any:
    """An eyeball at ``centre`` (metres) that looks to -y: rings of colour around its axis, veins.

    Its wet front is another surface (``cornea``).
    """
    shader = Shader("eye")
    inner, outer = iris
    here = shader.position()
    offset = shader.nodes.new("ShaderNodeVectorMath")
    offset.operation = "SUBTRACT"
    shader.links.new(here, offset.inputs[0])
    offset.inputs[1].default_value = centre
    axes = shader.axes(offset.outputs[0])
    across, up = (shader.math("DIVIDE", axes[k], float(radius)) for k in "XZ")
    flat = shader.math(
        "SQRT",
        shader.math(
            "ADD", shader.math("MULTIPLY", across, across), shader.math("MULTIPLY", up, up)
        ),
    )
    turn = shader.math("ARCTAN2", across, up)
    spokes = shader.nodes.new("ShaderNodeCombineXYZ")
    shader.put(shader.math("MULTIPLY", turn, 9.0), spokes.inputs["X"])
    shader.put(shader.math("MULTIPLY", flat, 5.0), spokes.inputs["Y"])
    fibres = shader.patches(spokes.outputs[0], 1.0, 3, 0.3, 0.7)

    ramp = shader.nodes.new("ShaderNodeValToRGB")
    stops = ramp.color_ramp.elements
    stops[0].position, stops[0].color = 0.0, (0.002, 0.002, 0.002, 1)  # the pupil
    stops[1].position, stops[1].color = 0.150, (0.003, 0.003, 0.003, 1)
    for position, colour in (
        (0.172, inner),
        (0.26, inner),
        (0.34, outer),
        (0.395, tuple(0.22 * c for c in outer)),
        (0.445, (0.36, 0.34, 0.33)),
        (0.50, (0.66, 0.635, 0.62)),
        (0.80, (0.62, 0.54, 0.51)),
        (1.0, (0.70, 0.48, 0.44)),
    ):
        stops.new(position).color = (*colour, 1)
    shader.links.new(flat, ramp.inputs[0])
    inside = shader.stretch(flat, 0.42, 0.36)
    strength = shader.math("MULTIPLY", inside, 0.75)
    dark = shader.mix(fibres, (0.35, 0.32, 0.30), (1.0, 1.0, 1.0))
    colour = shader.mix(strength, ramp.outputs["Color"], dark, "MULTIPLY")
    shader.settings(
        Base_Color=colour,
        Roughness=0.5,
        Specular_IOR_Level=0.2,
        Subsurface_Weight=0.25,
        Subsurface_Scale=0.002,
    )
    return shader.material


def cornea() -> Any:
    """Clear and wet: what lies behind shows through, lights are mirrored; it throws no shadow."""
    shader = Shader("cornea")
    shader.nodes.clear()
    clear, mirror, mixed, fresnel, output = (
        shader.nodes.new("ShaderNode" + kind)
        for kind in ("BsdfTransparent", "BsdfGlossy", "MixShader", "Fresnel", "OutputMaterial")
    )
    mirror.inputs["Roughness"].default_value = 0.03
    fresnel.inputs["IOR"].default_value = 1.9  # more than water: lights show as in a photograph
    shader.links.new(fresnel.outputs[0], mixed.inputs[0])
    shader.links.new(clear.outputs[0], mixed.inputs[1])
    shader.links.new(mirror.outputs[0], mixed.inputs[2])
    shader.links.new(mixed.outputs[0], output.inputs["Surface"])
    return shader.material


def enamel() -> Any:
    """Teeth: white, a little yellow and see-through, wet."""
    return plain("teeth", (0.94, 0.91, 0.84), 0.22, 0.35, coat=0.6)


def wet_flesh(name: str, colour: Colour, rough: float) -> Any:
    """Gums and tongue: patchy, bumpy, wet."""
    shader = Shader(name)
    here = shader.attribute("rest")["Vector"]
    patches = shader.patches(here, 260, 3, 0.35, 0.7)
    shader.settings(
        Base_Color=shader.mix(patches, colour, tuple(0.78 * c for c in colour)),
        Roughness=rough,
        Subsurface_Weight=0.4,
        Subsurface_Scale=0.004,
        Coat_Weight=0.35,
        Coat_Roughness=0.12,
    )
    shader.bump(shader.patches(here, 900, 2, 0.3, 0.7), 0.00025)
    return shader.material


def hair(name: str, colour: Colour, roughness: float) -> Any:
    """Cycles' hair shader; each strand a little lighter or darker than the next."""
    shader = Shader(name)
    shader.nodes.clear()
    fibre = shader.nodes.new("ShaderNodeBsdfHairPrincipled")
    fibre.parametrization = "COLOR"
    random = shader.nodes.new("ShaderNodeHairInfo").outputs["Random"]
    tint = shader.mix(random, tuple(0.65 * c for c in colour), tuple(1.45 * c for c in colour))
    shader.links.new(tint, fibre.inputs["Color"])
    fibre.inputs["Roughness"].default_value = roughness
    fibre.inputs["Radial Roughness"].default_value = 0.5
    output = shader.nodes.new("ShaderNodeOutputMaterial")
    shader.links.new(fibre.outputs[0], output.inputs["Surface"])
    return shader.material


def cloth(colour: Colour, weave: float, cut: bool = False) -> Any:
    """Woven cloth: threads both ways, a little uneven; ``cut`` where the mesh's "below" is < 0."""
    shader = Shader("cloth")
    here = shader.attribute("rest")["Vector"]
    axes = shader.axes(here)
    threads = None
    for axis in "XZ":
        wave = shader.math("SINE", shader.math("MULTIPLY", axes[axis], 5200.0))
        threads = wave if threads is None else shader.math("MULTIPLY", threads, wave)
    uneven = shader.patches(here, 420, 3, 0.3, 0.7)
    shade = shader.math("MULTIPLY", uneven, weave)
    shader.settings(
        Base_Color=shader.mix(shade, colour, tuple(0.62 * c for c in colour)),
        Roughness=0.82,
        Sheen_Weight=0.25,
        Specular_IOR_Level=0.25,
        Subsurface_Weight=0.05,
        Subsurface_Scale=0.003,
    )
    shader.bump(shader.math("ADD", shader.math("MULTIPLY", threads, 0.5), uneven), 0.00018)
    if cut:
        below = shader.attribute("below")["Fac"]
        shader.settings(Alpha=shader.math("GREATER_THAN", below, 0.001))
    return shader.material


def glow(name: str, colour: Colour, strength: float) -> Any:
    """Something that shines: a window, a lamp."""
    shader = Shader(name)
    shader.settings(Base_Color=(0.0, 0.0, 0.0), Emission_Color=colour, Emission_Strength=strength)
    shader.material.cycles.emission_sampling = "NONE"  # it is only looked at
    return shader.material
