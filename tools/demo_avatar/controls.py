# SPDX-License-Identifier: Apache-2.0
"""The eight mouth controls that speech drives, and the face actions that they stand for."""

from __future__ import annotations

from collections.abc import Sequence

CONTROLS = ("open", "close", "pucker", "funnel", "wide", "tuck", "teeth", "tongue")
"""Each 0..1; all 0 is the neutral mouth with gently closed lips."""

EFFECT = (3.0, 2.0, 1.2, 1.2, 1.0, 1.3, 1.5, 0.7)
"""How much one unit of each control shows: weights of the distance between two poses."""

REST: dict[str, float] = {
    "mouthClose": 0.15,
    "mouthSmile": 0.20,
    "cheekSquint": 0.10,
    "eyeWide": 0.10,
}
"""The friendly face at rest; names without Left/Right stand for both."""

ACTIONS: dict[str, dict[str, float]] = {
    "open": {"jawOpen": 0.50, "mouthLowerDown": 0.22, "mouthUpperUp": 0.22},
    "close": {"mouthClose": 0.10, "mouthPress": 0.20},
    "pucker": {"mouthPucker": 0.80, "jawOpen": 0.02},
    "funnel": {"mouthFunnel": 0.70, "jawOpen": 0.05},
    "wide": {"mouthStretch": 0.35, "mouthSmile": 0.25, "mouthLowerDown": 0.10},
    "tuck": {"mouthRollLower": 0.62, "mouthUpperUp": 0.40, "jawOpen": 0.02},
    "teeth": {"jawOpen": 0.05, "mouthLowerDown": 0.62, "mouthUpperUp": 0.48},
    "tongue": {"tongueOut": 0.22, "jawOpen": 0.09, "mouthLowerDown": 0.30, "mouthUpperUp": 0.18},
}
"""What one unit of each control adds to the face actions."""

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
            if name != "close" and action in ("mouthLowerDown", "mouthUpperUp", "tongueOut"):
                value *= 1.0 - shut
            elif name != "close" and action == "jawOpen":
                value *= 1.0 - 0.5 * shut
            actions[action] = actions.get(action, 0.0) + value
    actions["mouthClose"] += shut * actions.get("jawOpen", 0.0)
    out: dict[str, float] = {}
    for action, weight in actions.items():
        weight = min(1.0, weight)
        if action in SIDED:
            out[action + "Left"] = out[action + "Right"] = weight
        else:
            out[action] = weight
    return out
