# SPDX-License-Identifier: Apache-2.0
"""Who the demo people are: shape, colours, hair and clothes of each. Colours are linear RGB."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from layout import LANDSCAPE, PORTRAIT, Layout

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Skin:
    """Two tones that mix in patches, and what lies over them (strengths 0..1)."""

    light: Colour = (0.68, 0.46, 0.365)
    deep: Colour = (0.58, 0.36, 0.27)
    flush: Colour = (0.62, 0.25, 0.19)
    lips: Colour = (0.52, 0.17, 0.155)
    freckles: float = 0.25
    flushed: float = 0.42
    stubble: float = 0.0


@dataclass(frozen=True)
class Hair:
    """A head of hair. ``cut`` chooses how it grows (strands.py); lengths are metres."""

    cut: Literal["long", "short"]
    colour: Colour
    brows: Colour
    roughness: float = 0.32
    strands: int = 30_000
    brow_width: float = 1.0


@dataclass(frozen=True)
class Clothes:
    """A shirt with a turned-down collar."""

    cloth: Colour
    weave: float = 0.35
    """How much its threads show, 0..1."""
    open_neck: float = 0.045
    """Metres from the collar's fold down to where the shirt is buttoned."""
    neck: float = 0.092
    """Metres from the face's front back to the neck's middle, which the collar goes around."""
    first: float = 0.020
    """Metres under the jaw's line where at the highest the collar may begin to stand."""
    stand: float = 0.030
    """The collar's height, metres."""


@dataclass(frozen=True)
class Tints:
    """Grey levels (0..255) by which a picture's pixels tell the mouth's inside from lips and skin.

    Of each pair the first is surely inside, the second surely not.
    """

    dark: tuple[float, float] = (118.0, 146.0)
    """Red of the mouth's inside, and of the darkest lit lip."""
    grey: tuple[float, float] = (13.0, 25.0)
    """Red above green of teeth, and of the palest skin."""
    cool: tuple[float, float] = (4.0, 6.0)
    """Green above blue of the tongue, and of the coolest lip."""


@dataclass(frozen=True)
class Person:
    """Everything in which one demo person differs from another.

    ``targets`` are MakeHuman's, with weights of about 0..1; ``paired`` are those that exist once
    for each side, as l-NAME and r-NAME. Iris colours go from the pupil outwards.
    """

    name: str
    layout: Layout
    targets: Mapping[str, float]
    paired: Mapping[str, float]
    hair: Hair
    clothes: Clothes
    skin: Skin = field(default_factory=Skin)
    iris: tuple[Colour, Colour] = ((0.150, 0.075, 0.028), (0.060, 0.031, 0.014))
    lash: float = 1.0
    """Length of the lashes, against MakeHuman's."""
    arms_down: float = 32.0
    """Degrees by which the arms are lowered from the mesh's pose."""
    seed: int = 7
    tints: Tints = field(default_factory=Tints)
    """What mouth_measure.py reads the gap between the lips by."""


ADA = Person(
    name="ada",
    layout=LANDSCAPE,
    targets={
        "caucasian-female-young": 0.80,
        "asian-female-young": 0.20,
        "head-oval": 0.35,
        "chin-width-decr": 0.25,
        "mouth-upperlip-volume-incr": 0.45,
        "mouth-lowerlip-volume-incr": 0.30,
        "mouth-upperlip-height-incr": 0.35,
        "mouth-cupidsbow-incr": 0.25,
        "mouth-angles-up": 0.20,
        "nose-scale-horiz-decr": 0.35,
        "nose-point-width-decr": 0.25,
        "nose-point-up": 0.20,
    },
    paired={
        "eye-scale-incr": 0.25,
        "eye-height2-incr": 0.35,
        "cheek-bones-incr": 0.25,
        "cheek-volume-incr": 0.15,
    },
    hair=Hair("long", (0.055, 0.026, 0.013), (0.042, 0.024, 0.015)),
    clothes=Clothes((0.055, 0.135, 0.145)),
    arms_down=38.0,
)
BEN = Person(
    name="ben",
    layout=PORTRAIT,
    targets={
        "caucasian-male-young": 0.75,
        "african-male-young": 0.15,
        "caucasian-male-old": 0.10,
        "head-rectangular": 0.25,
        "chin-prominent-incr": 0.20,
        "head-scale-vert-decr": 0.35,
        "chin-jaw-drop-decr": 0.20,
        "nose-scale-vert-decr": 0.35,
        "nose-volume-decr": 0.30,
        "nose-point-up": 0.20,
        "mouth-trans-up": 0.20,
        "mouth-lowerlip-volume-incr": 0.35,
        "mouth-upperlip-volume-incr": 0.45,
        "mouth-upperlip-height-incr": 0.30,
        "mouth-angles-up": 0.25,
    },
    paired={
        "eye-scale-incr": 0.20,
        "eye-height2-incr": 0.55,
        "eye-height1-incr": 0.25,
        "ear-wing-decr": 0.40,
        "cheek-volume-incr": 0.15,
    },
    hair=Hair("short", (0.028, 0.017, 0.011), (0.020, 0.012, 0.008), brow_width=1.35),
    clothes=Clothes((0.085, 0.15, 0.24), open_neck=0.016, neck=0.128, first=0.004, stand=0.024),
    skin=Skin(
        light=(0.61, 0.385, 0.285),
        deep=(0.49, 0.29, 0.205),
        lips=(0.47, 0.20, 0.17),
        freckles=0.1,
        stubble=0.55,
    ),
    iris=((0.12, 0.15, 0.14), (0.05, 0.075, 0.085)),
    lash=0.7,
    seed=12,
    tints=Tints(dark=(106.0, 134.0), grey=(10.0, 22.0), cool=(6.0, 8.5)),
)
PEOPLE = {person.name: person for person in (ADA, BEN)}
