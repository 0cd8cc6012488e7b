# SPDX-License-Identifier: Apache-2.0
"""The eight mouth controls that speech drives, and the face actions that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

CONTROLS = ("open", "close", "pucker", "funnel", "wide", "tuck", "teeth", "tongue")
"""Each 0..1; all 0 is the neutral mouth with gently closed lips."""

EFFECT = (3.0, 2.0, 1.2, 1.2, 1.0, 1.3, 1.5, 0.7)
"""How much one unit of each control shows: weights of the distance between two poses."""

REST: dict[str, float] = {
    "mouthClose": 0.17,
    "mouthSmile": 0.30,
    "cheekSquint": 0.20,
    "eyeWide": 0.04,
}
"""The friendly face at rest; names without Left/Right stand for both."""

ACTIONS: dict[str, dict[str, float]] = {
    "open": {"jawOpen": 0.80, "mouthLowerDown": 0.26, "mouthUpperUp": 0.30},
    "close": {
        "mouthClose": 0.10,
        "mouthPress": 0.04,
        "mouthRollLower": 0.10,
        "mouthRollUpper": 0.10,
    },
    "pucker": {"mouthPucker": 1.20, "mouthFunnel": 0.55, "jawOpen": 0.10, "mouthClose": -0.15},
    "funnel": {"mouthFunnel": 1.05, "jawOpen": 0.09, "mouthPucker": 0.15},
    "wide": {"mouthStretch": 0.45, "mouthSmile": 0.45, "mouthLowerDown": 0.15},
    "tuck": {
        "mouthRollLower": 1.0,
        "mouthUpperUp": 0.66,
        "mouthLowerDown": 0.56,
        "jawOpen": 0.02,
        "mouthClose": -0.15,
    },
    "teeth": {
        "jawOpen": 0.06,
        "mouthLowerDown": 0.80,
        "mouthUpperUp": 0.72,
        "mouthClose": -0.13,
    },
    "tongue": {"jawOpen": 0.20, "mouthLowerDown": 0.60, "mouthUpperUp": 0.38},
}
"""What one unit of each control adds to the face actions (the tongue's own: see ``to_actions``)."""

BROWS = ("browInnerUp", "browOuterUpLeft", "browOuterUpRight")
"""Actions that lift the brows, in the idle loop."""
TONGUE_OUT = 0.78
"""How far the tongue comes out at most: up to half of its control it rises to the upper teeth (l),
beyond that its tip comes down between the teeth (th)."""
MOST = {"mouthPucker": 1.3, "mouthRollLower": 1.4, "mouthFunnel": 1.2}
"""Actions that may go beyond 1: the pack's own full strength is a mild one."""

SIDED = frozenset(
    {
        "mouthSmile",
        "mouthStretch",
        "mouthPress",
        "mouthLowerDown",
        "mouthUpperUp",
        "cheekSquint",
        "eyeWide",
    }
)
"""Actions that exist once for each side, as NAMELeft and NAMERight."""


def to_actions(controls: Sequence[float]) -> dict[str, float]:
    """ARKit action weights (0..1, Left and Right spelled out) of eight controls (0..1).

    Closing wins over opening: it lets the jaw hang half as far and seals the lips over the rest.
    """
    c = dict(zip(CONTROLS, controls, strict=True))
    shut = c["close"]
    actions = dict(REST)
    for name, weight in c.items():
        for action, gain in ACTIONS[name].items():
            value = weight * gain
            if name != "close" and action in ("mouthLowerDown", "mouthUpperUp"):
                value *= 1.0 - shut
            elif name != "close" and action == "jawOpen":
                value *= 1.0 - 0.5 * shut
            actions[action] = actions.get(action, 0.0) + value
    lifted, out = min(1.0, 2.0 * c["tongue"]), max(0.0, 2.0 * c["tongue"] - 1.0)
    actions["tongueRaise"] = (lifted - 0.25 * out) * (1.0 - shut)
    actions["tongueOut"] = TONGUE_OUT * out * (1.0 - shut)
    actions["mouthClose"] += shut * actions.get("jawOpen", 0.0)
    named: dict[str, float] = {}
    for action, weight in actions.items():
        weight = min(MOST.get(action, 1.0), weight)
        if action in SIDED:
            named[action + "Left"] = named[action + "Right"] = weight
        else:
            named[action] = weight
    return named
