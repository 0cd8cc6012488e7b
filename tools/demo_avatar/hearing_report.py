# SPDX-License-Identifier: Apache-2.0
"""The report of evaluate_hearing.py as a page."""

from __future__ import annotations

from typing import Any

GROUPS = {
    "measured": "six speakers who are only measured by",
    "judged": "readers kept for judging",
    "own": "the one speaker of corpus.py's test recordings",
}


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows] + [""]


def percent(part: float | None) -> str:
    """A share; a dash where there is nothing to share."""
    return "-" if part is None else f"{part:.0%}"


def of(counts: list[int]) -> str:
    """Some of all."""
    return f"{counts[0]} of {counts[1]}"


def written(report: dict[str, Any]) -> str:
    """The whole page."""
    names = list(report)
    lines = [
        "# How well audio encoders hear the mouth",
        "",
        "Made by `tools/demo_avatar/evaluate_hearing.py`. No pictures: what is heard is put onto "
        "the head's exact lips, and their opening is compared with what the aligned phones ask "
        "for. r is Pearson's, over all frames whose alignment can be believed. Sealed: shut over "
        "the whole width in a frame of p, b, m or one beside it; read it beside its chance level "
        "(other recordings' gaps). Open in pauses: frames 0.12 s or more away from any phone with "
        "a gap above 1.5 px. Lag in frames; positive: late. `shipped` is what a package's encoder "
        "and audio branch hear, told by a linear layer; `seen` is read from its pictures.",
        "",
    ]
    for group, about in GROUPS.items():
        some = [n for n in names if group in report[n]]
        lines += [f"## {about[0].upper()}{about[1:]}", ""]
        head = ["encoder", "mean r", "pooled r", "lag", "closed", "sealed", "sealed by chance"]
        rows = []
        for name in some:
            g = report[name][group]
            p = g["pooled"]
            rows.append(
                [
                    name,
                    f"{g['mean_r']:.3f}",
                    f"{p['r']:.3f}",
                    f"{p['lag_frames']:+.2f}",
                    of(p["closed"]),
                    f"{of(p['sealed'])} ({g['sealed_share']:.0%})",
                    percent(g["sealed_by_chance"]),
                    percent(p["open_in_pauses"]),
                    f"{p['p95_px'] / p['p95_expected_px']:.2f}",
                ]
            )
        lines += table([*head, "open in pauses", "p95 / expected"], rows)
        if group == "own":
            continue
        speakers = list(report[some[0]][group]["speakers"]) if some else []
        rows = [
            [
                s,
                *(
                    f"{e['r']:.2f}, {of(e['sealed'])}, {percent(e['open_in_pauses'])}"
                    for e in (report[n][group]["speakers"][s] for n in some)
                ),
            ]
            for s in speakers
        ]
        lines += ["r, sealed, open in pauses:", "", *table(["speaker", *some], rows)]
    some = [n for n in names if "disturbed" in report[n]]
    lines += ["## Disturbed, the six: r to the same encoder's clean gaps, r, open in pauses", ""]
    kinds = list(dict.fromkeys(k for n in some for k in report[n]["disturbed"]))
    rows = [
        [
            kind,
            *(
                f"{d['r_to_clean']:.3f}, {d['r']:.3f}, {percent(d['open_in_pauses'])}" if d else "-"
                for d in (report[n]["disturbed"].get(kind) for n in some)
            ),
        ]
        for kind in kinds
    ]
    return "\n".join(lines + table(["disturbance", *some], rows))
