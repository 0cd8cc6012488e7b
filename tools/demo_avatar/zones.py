# SPDX-License-Identifier: Apache-2.0
"""Zones of the skin, as numbers 0..1 at its vertices: where blood, hair or grease tint it."""

from __future__ import annotations

import numpy as np
from strands import Face, Hairline, Points, smooth


def _spot(places: Points, centre: tuple[float, ...], radii: tuple[float, ...]) -> Points:
    """1 at ``centre``, falling with a Gaussian of ``radii`` (metres)."""
    out: Points = np.exp(-(((places - np.array(centre)) / np.array(radii)) ** 2).sum(1))
    return out


def zones(places: Points, face: Face, hairline: Hairline) -> dict[str, Points]:
    """Zones of the skin at ``places`` (N x 3, metres).

    flush: redder (cheeks, nose, chin, ears). hollow: shadows under the eyes. freckled: where
    freckles are. beard: where one grows. scalp: the skin under the hair. oil: more gloss.
    """
    mirrored = places * np.array([0.0, 1.0, 1.0]) + abs(places[:, :1]) * np.array([1.0, 0, 0])
    front, eye = face.front_y, face.eye_z
    nose_y, nose_z = float(face.nose[1]), float(face.nose[2])
    cheek_z = (nose_z + eye) / 2 - 0.010
    cheeks = _spot(mirrored, (0.042, front + 0.02, cheek_z), (0.019, 0.05, 0.017))
    nose = _spot(mirrored, (0.0, nose_y, nose_z), (0.015, 0.02, 0.012))
    chin = _spot(mirrored, (0.0, front, face.chin_z + 0.014), (0.016, 0.03, 0.011))
    under = _spot(mirrored, (face.eye_x, front + 0.01, eye - 0.0165), (0.015, 0.03, 0.0050))
    bridge = _spot(mirrored, (0.0, nose_y, cheek_z), (0.055, 0.06, 0.024))
    forehead = _spot(mirrored, (0.0, front, eye + 0.048), (0.032, 0.03, 0.022))
    aside, behind, z = mirrored[:, 0], places[:, 1] - front, places[:, 2]
    # The beard's upper edge falls from the ear to the corner of the mouth, and spares the cheek.
    edge = face.lips_z + 0.012 + 0.55 * np.maximum(0.0, aside - 0.034) - 0.006
    beard = smooth(edge - z, -0.006, 0.008) * (1 - smooth(behind, 0.085, 0.105))
    beard = beard * smooth(z - (face.chin_z - 0.040), -0.012, 0.018)
    lip = _spot(mirrored, (0.0, nose_y + 0.015, face.lips_z + 0.0155), (0.020, 0.03, 0.0050))
    return {
        "flush": np.clip(cheeks + 0.8 * nose + 0.45 * chin, 0, 1),
        "hollow": under,
        "freckled": np.clip(bridge + cheeks, 0, 1),
        "beard": np.clip(beard + 0.9 * lip, 0, 1),
        "scalp": hairline.density(places) * (z > eye - 0.09),
        "oil": np.clip(nose + 0.6 * forehead + 0.5 * chin + 0.4 * cheeks, 0, 1),
    }
