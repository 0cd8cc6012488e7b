# SPDX-License-Identifier: Apache-2.0
"""Files of an evaluation: report.json, report.md, opening.png (curves), sheet.jpg (mouths)."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import cv2
import matplotlib
import numpy as np
from mouth_measure import CLOSED_PX, SEALED_PX, U8

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from lipsync_fast.provenance import jpeg_with_xmp, xmp_packet

if TYPE_CHECKING:
    from evaluate import Track

SHEET_COLUMNS, SHEET_ROWS = 4, 6
PLOTTED = 5
FIGURES = (
    ("r", "Correlation of the lip gap, all frames", ">= 0.85"),
    ("r_speech_frames_only", "… frames within phones only", ""),
    ("r_median_per_recording", "… median of the recordings", ""),
    ("r_worst_recording", "… worst recording", ""),
    ("gain", "Slope, measured against expected", "near 1"),
    ("lag_frames", "Best lag in frames (positive: late)", "within 1"),
    ("closed", "p, b, m with lips closed", ">= 0.90"),
    ("shuffled_closed", "… in other recordings' pictures (chance)", ""),
    ("sealed", "p, b, m with lips shut over the whole width", ""),
    ("shuffled_sealed", "… in other recordings' pictures (chance)", ""),
    ("open_when_open_expected", "Frames seen open where 4 px or more are expected", ""),
    ("shuffled_r", "Correlation with other recordings' pictures (must be low)", "< 0.5"),
    ("sharpness_ratio_median", "Sharpness of generated / rendered mouths", "near 1"),
    ("outside_largest_difference", "Largest difference outside the region, grey levels", "0"),
    ("seam_step", "Step across the region's edge, grey levels", ""),
    ("seam_step_in_original", "… at the same places of the avatar's frames", ""),
)


def write(
    out: pathlib.Path,
    subject: str,
    found: dict[str, Any],
    met: dict[str, bool],
    validated: dict[str, float],
    tracks: list[Track],
    pairs: list[tuple[U8, U8, str]],
) -> None:
    """Write the four files into ``out``."""
    whole = {"subject": subject, **found, "goals_met": met, "measure_on_rendered": validated}
    whole["closed_threshold_px"], whole["sealed_threshold_px"] = CLOSED_PX, SEALED_PX
    (out / "report.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "report.md").write_text(markdown(subject, found, met, validated))
    curves(out / "opening.png", tracks)
    sheet(out / "sheet.jpg", pairs)


def markdown(
    subject: str, found: dict[str, Any], met: dict[str, bool], validated: dict[str, float]
) -> str:
    """The report for a reader."""
    lines = [
        "# Lip sync on held-out real speech",
        "",
        f"Subject: {subject}. {found['recordings']} recordings that no training step has seen,"
        f" {found['seconds']:.0f} s, {found['frames']} frames.",
        "",
        "| figure | value | goal |",
        "|---|---|---|",
    ]
    for key, words, goal in FIGURES:
        value = found[key]
        shown = "not measured" if value is None else f"{value:.3f}".rstrip("0").rstrip(".")
        lines.append(f"| {words} | {shown} | {goal} |")
    phones = ", ".join(f"{k} {c} of {n}" for k, (c, n) in sorted(found["closed_by_phone"].items()))
    lines += ["", f"Closed lips by phone: {phones}.", ""]
    lines += [f"- {name}: {'met' if good else 'MISSED'}" for name, good in met.items()]
    lines += [
        "",
        f"Closed means a measured gap of {CLOSED_PX} px or less, the mouth being some 85 px wide,"
        " in a frame of the phone's segment or one frame beside it; as lips often meet there,"
        " that happens by chance too, so read it beside its chance level. Shut over the whole width"
        f" means that the widest decile is {SEALED_PX} px or less. The gap is read from the"
        " pixels' colours in the middle of the mouth. On"
        f" {validated['pictures']} rendered mouths of known geometry this measure has r ="
        f" {validated['r']:.3f}, a mean error of {validated['mean_error_px']:.2f} px, calls"
        f" {validated['closed_called_open']:.1%} of the closed ones open and"
        f" {validated['open_2px_called_closed']:.1%} of those open by 2 px or more closed.",
        "The expected gap follows from a forced alignment of the transcript (10 ms steps) and the"
        " rules of phones.py: it is no measurement of the speaker's own lips.",
    ]
    return "\n".join(lines) + "\n"


def curves(path: pathlib.Path, tracks: list[Track]) -> None:
    """Measured and expected gap over time, for the longest recordings."""
    longest = sorted(tracks, key=lambda t: -len(t.gaps))[:PLOTTED]
    figure, axes = plt.subplots(len(longest), 1, figsize=(12, 2.2 * len(longest)), squeeze=False)
    for axis, track in zip(axes[:, 0], longest, strict=True):
        t = (np.arange(len(track.gaps)) + 0.5) / 25
        axis.plot(t, track.recording.expected, color="0.6", lw=3, label="expected")
        axis.plot(
            t, [g.middle for g in track.gaps], color="C3", lw=1.3, label="measured in the pictures"
        )
        for _, start, end in track.recording.closures:
            axis.axvspan(start, end, color="C0", alpha=0.2, lw=0)
        axis.set_title(track.recording.name.removeprefix("real-"), fontsize=9, loc="left")
        axis.set_ylabel("gap, px")
    axes[0, 0].legend(fontsize=8, loc="upper right")
    axes[-1, 0].set_xlabel("seconds (blue: p, b, m)")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def sheet(path: pathlib.Path, pairs: list[tuple[U8, U8, str]]) -> None:
    """Face squares in pairs: generated, and rendered from the aligned phones."""
    count = min(len(pairs), SHEET_COLUMNS * SHEET_ROWS)
    chosen = np.linspace(0, len(pairs) - 1, count).round().astype(int)
    cells = []
    for k in chosen:
        made, wanted, label = pairs[k]
        cell = np.ascontiguousarray(np.concatenate([made, wanted], 1))
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(cell, label, (4, 14), font, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(cell)
    while len(cells) % SHEET_COLUMNS:
        cells.append(np.zeros_like(cells[0]))
    starts = range(0, len(cells), SHEET_COLUMNS)
    rows = [np.concatenate(cells[i : i + SHEET_COLUMNS], 1) for i in starts]
    _, data = cv2.imencode(
        ".jpg", np.concatenate(rows, 0)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88]
    )
    path.write_bytes(jpeg_with_xmp(data.tobytes(), xmp_packet(synthetic=True)))
